//! Every virtio device there is: a closed set, so an enum.

use super::balloon::Balloon;
use super::block::Block;
use super::device::VirtioDevice;
use super::mem::Mem;
use super::net::Net;
use super::pmem::Pmem;
use super::rng::Rng;
use super::vhost_user::VhostUser;
use super::vsock::Vsock;

/// One of the virtio devices.
pub enum AnyDevice {
    /// Block device.
    Block(Box<Block>),
    /// Network card.
    Net(Box<Net>),
    /// Entropy device.
    Rng(Box<Rng>),
    /// Hot-pluggable memory.
    Mem(Box<Mem>),
    /// Persistent memory.
    Pmem(Box<Pmem>),
    /// Memory balloon.
    Balloon(Box<Balloon>),
    /// Socket device.
    Vsock(Box<Vsock>),
    /// Device that another process serves.
    VhostUser(Box<VhostUser>),
}

impl AnyDevice {
    /// What all of them can do.
    pub fn get(&self) -> &dyn VirtioDevice {
        match self {
            AnyDevice::Block(device) => &**device,
            AnyDevice::Net(device) => &**device,
            AnyDevice::Rng(device) => &**device,
            AnyDevice::Mem(device) => &**device,
            AnyDevice::Pmem(device) => &**device,
            AnyDevice::Balloon(device) => &**device,
            AnyDevice::Vsock(device) => &**device,
            AnyDevice::VhostUser(device) => &**device,
        }
    }

    /// What all of them can do.
    pub fn get_mut(&mut self) -> &mut dyn VirtioDevice {
        match self {
            AnyDevice::Block(device) => &mut **device,
            AnyDevice::Net(device) => &mut **device,
            AnyDevice::Rng(device) => &mut **device,
            AnyDevice::Mem(device) => &mut **device,
            AnyDevice::Pmem(device) => &mut **device,
            AnyDevice::Balloon(device) => &mut **device,
            AnyDevice::Vsock(device) => &mut **device,
            AnyDevice::VhostUser(device) => &mut **device,
        }
    }
}
