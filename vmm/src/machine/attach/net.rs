use devices::virtio::any::AnyDevice;
use devices::virtio::net::{Net, NetSpec};

use super::Board;
use crate::blueprint;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches one network interface.
pub(super) fn attach(board: &mut Board<'_>, net: &blueprint::Net) -> Result<(), Error> {
    let name = DeviceName::Net(net.config.id.clone());
    let fail = |e: std::io::Error| Error::host(Subject::Start, format!("{name}: {e}"));
    let spec = NetSpec {
        tap: net.tap.try_clone().map_err(fail)?,
        mac: net.config.guest_mac.map(|mac| mac.bytes()),
        mtu: net.config.mtu,
        rx_limits: net.config.rx_rate_limiter,
        tx_limits: net.config.tx_rate_limiter,
    };
    let device = Net::new(spec).map_err(fail)?;
    board.put(name, Home::Vmm, AnyDevice::Net(Box::new(device)))?;
    Ok(())
}
