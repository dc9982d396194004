use std::sync::Arc;
use std::time::Instant;

use devices::mmds::{Mmds, Stack};
use devices::sys::random;
use devices::virtio::any::AnyDevice;
use devices::virtio::net::{Net, NetSpec, Tap};

use super::{Board, Lanes};
use crate::blueprint;
use crate::config::MmdsConfig;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches one network interface, with the metadata service behind it if it is one that `service` names.
pub(super) fn attach(
    board: &mut Board<'_>,
    net: &blueprint::Net,
    vcpus: u8,
    service: Option<&MmdsConfig>,
    mmds: &Arc<Mmds>,
) -> Result<(), Error> {
    let taps = net.taps(board.transport, vcpus)?;
    let Lanes { first, others, home } = make(net, taps, service, mmds)?;
    board.put_lanes(DeviceName::Net(net.config.id.clone()), home, first, others)?;
    Ok(())
}

/// Makes the device: `taps` has one for each pair of its queues.
pub(in crate::machine) fn make(
    net: &blueprint::Net,
    mut taps: Vec<Tap>,
    service: Option<&MmdsConfig>,
    mmds: &Arc<Mmds>,
) -> Result<Lanes, Error> {
    let name = DeviceName::Net(net.config.id.clone());
    let fail = |e: std::io::Error| Error::host(Subject::Start, format!("{name}: {e}"));
    let service = service.filter(|config| config.network_interfaces().contains(&net.config.id));
    let spec = NetSpec {
        tap: taps.remove(0),
        more_taps: taps,
        mac: net.config.guest_mac.map(|mac| mac.bytes()),
        mtu: net.config.mtu,
        rx_limits: net.config.rx_rate_limiter,
        tx_limits: net.config.tx_rate_limiter,
        mmds: service.map(|config| stack(config, mmds)).transpose().map_err(fail)?,
    };
    let pairs = spec.more_taps.len() + 1;
    let device = Net::new(spec).map_err(fail)?;
    let others = (1..pairs).map(|pair| Ok(AnyDevice::Net(Box::new(device.lane(pair)?))));
    let others: Vec<AnyDevice> = others.collect::<Result<_, _>>().map_err(fail)?;
    // Frames never wait; but pairs are there to be served side by side.
    let home = if others.is_empty() { Home::Vmm } else { Home::Own };
    Ok(Lanes { first: AnyDevice::Net(Box::new(device)), others, home })
}

fn stack(config: &MmdsConfig, mmds: &Arc<Mmds>) -> std::io::Result<Stack> {
    let seed = u64::from_le_bytes(random::bytes()?);
    Ok(Stack::new(mmds.clone(), config.manner(), config.ipv4_address(), seed, Instant::now()))
}
