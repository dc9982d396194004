//! The virtio devices of a machine by name.

use std::fmt;
use std::sync::Arc;

use devices::event::Subscriber;
use devices::virtio::cell::{LaneSeat, VirtioCell};

use super::pci::Card;
use crate::config::ResourceId;

/// Names a device of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// The balloon.
    Balloon,
    /// A drive.
    Drive(ResourceId),
    /// A drive that another process serves.
    VhostUserDrive(ResourceId),
    /// A file system that another process serves.
    Fs(ResourceId),
    /// A network interface.
    Net(ResourceId),
    /// A persistent-memory device.
    Pmem(ResourceId),
    /// The socket device.
    Vsock,
    /// The entropy device.
    Rng,
    /// Hot-pluggable memory.
    Memory,
}

impl DeviceName {
    /// The kind of thing it is, by its name in the v1 metrics file, and which one, where there may be several.
    pub fn family(&self) -> (&'static str, Option<&ResourceId>) {
        match self {
            Self::Balloon => ("balloon", None),
            Self::Drive(id) => ("block", Some(id)),
            Self::VhostUserDrive(id) => ("vhost_user_block", Some(id)),
            Self::Fs(id) => ("vhost_user_fs", Some(id)),
            Self::Net(id) => ("net", Some(id)),
            Self::Pmem(id) => ("pmem", Some(id)),
            Self::Vsock => ("vsock", None),
            Self::Rng => ("entropy", None),
            Self::Memory => ("memory_hotplug", None),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balloon => f.write_str("balloon"),
            Self::Drive(id) | Self::VhostUserDrive(id) => write!(f, "drive {id}"),
            Self::Fs(id) => write!(f, "file system {id}"),
            Self::Net(id) => write!(f, "network interface {id}"),
            Self::Pmem(id) => write!(f, "pmem {id}"),
            Self::Vsock => f.write_str("vsock"),
            Self::Rng => f.write_str("entropy device"),
            Self::Memory => f.write_str("hotplug memory"),
        }
    }
}

/// Which event loop serves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// The VMM thread's, with the other devices that never block.
    Vmm,
    /// One of its own: the device makes system calls that may take long, or is served in several lanes. A device with several lanes has several, see [`super::spread`].
    Own,
    /// One that all drives on the io_uring share; several, each with an io_uring, if one of them has several lanes. Serving them never blocks, but to pause, or to swap a file, is to wait for what is in
    /// flight.
    Uring,
}

/// A device that was attached.
pub(super) struct Seat {
    pub(super) name: DeviceName,
    pub(super) cell: Arc<VirtioCell>,
    pub(super) home: Home,
    /// Over how many threads its lanes are spread, if they are not the VMM's.
    pub(super) threads: usize,
    /// Where it is on the PCI bus, if there is one.
    pub(super) card: Option<Card>,
}

impl Seat {
    /// The lanes that the thread with this number serves, of those that the device is spread over.
    pub(super) fn lanes_of(&self, thread: usize) -> impl Iterator<Item = Arc<dyn Subscriber>> + '_ {
        let lanes = (thread..self.cell.lane_count()).step_by(self.threads.max(1));
        lanes.map(|lane| Arc::new(LaneSeat::new(self.cell.clone(), lane)) as Arc<dyn Subscriber>)
    }
}
