//! How a device takes part in an event loop, whichever loop that is.

use std::os::fd::RawFd;

/// What to wait for on a file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// It can be read.
    Readable,
    /// It can be written.
    Writable,
}

/// A file descriptor a subscriber waits on. It belongs to the subscriber and lives as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor.
    pub fd: RawFd,
    /// What to wait for.
    pub interest: Interest,
    /// Handed back to [`Subscriber::ready`].
    pub token: u32,
}

/// Something that reacts to file descriptors.
///
/// Sources are watched **edge-triggered**: `ready` is called once per new event, not as long as the event lasts. So an eventfd need not be
/// read at all, and a source that cannot make progress (no receive buffer, say) costs nothing until something new happens; but the
/// subscriber must drain a source or remember that there is more.
pub trait Subscriber: Send + Sync {
    /// What to watch. Asked once, when the subscriber is added to a loop.
    fn sources(&self) -> Vec<Source>;

    /// The source with this token became ready. Must not block.
    fn ready(&self, token: u32);
}
