//! Every virtio device there is: a closed set, so an enum.

use super::block::Block;
use super::device::VirtioDevice;
use super::net::Net;
use super::vsock::Vsock;

/// One of the virtio devices.
pub enum AnyDevice {
    /// Block device.
    Block(Box<Block>),
    /// Network card.
    Net(Box<Net>),
    /// Socket device.
    Vsock(Box<Vsock>),
}

impl AnyDevice {
    /// What all of them can do.
    pub fn get(&self) -> &dyn VirtioDevice {
        match self {
            AnyDevice::Block(device) => &**device,
            AnyDevice::Net(device) => &**device,
            AnyDevice::Vsock(device) => &**device,
        }
    }

    /// What all of them can do.
    pub fn get_mut(&mut self) -> &mut dyn VirtioDevice {
        match self {
            AnyDevice::Block(device) => &mut **device,
            AnyDevice::Net(device) => &mut **device,
            AnyDevice::Vsock(device) => &mut **device,
        }
    }
}
