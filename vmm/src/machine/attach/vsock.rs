use std::io;

use devices::virtio::any::AnyDevice;
use devices::virtio::vsock::{Vsock, VsockSpec};

use super::Board;
use crate::blueprint;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches the socket device.
pub(super) fn attach(board: &mut Board<'_>, vsock: &blueprint::Vsock) -> Result<(), Error> {
    let name = DeviceName::Vsock;
    let device = open(vsock).map_err(|e| Error::host(Subject::Start, format!("{name}: {e}")))?;
    board.put(name, Home::Vmm, AnyDevice::Vsock(Box::new(device)))?;
    Ok(())
}

fn open(vsock: &blueprint::Vsock) -> io::Result<Vsock> {
    Vsock::new(VsockSpec {
        guest_cid: vsock.config.guest_cid(),
        uds_path: vsock.config.uds_path().to_owned(),
        // The plan keeps its own, and with it the socket's file, for as long as the machine lives or if the start fails.
        listener: vsock.listener.socket().try_clone()?,
    })
}
