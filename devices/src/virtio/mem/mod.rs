//! Memory that comes and goes while the guest runs (virtio 1.3 §5.15).
//!
//! The device owns a region of guest addresses, cut into blocks. The operator says how much of it the guest should use; the driver plugs
//! and unplugs blocks to get there. `blocks` knows which are plugged, `request` what a driver asks, `work` does it in bites, `device` is
//! the rest.
//!
//! vCPUs reach the region in slots of many blocks: one that holds no plugged block is taken away from them. How that is done, and how
//! pages go back to the host, the device does not know: see [`Backing`].

mod blocks;
mod device;
mod metrics;
mod request;
pub mod syscalls;
mod work;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

pub use device::{BadSize, Mem, MemSpec};
pub use metrics::MemMetrics;

/// The memory behind the device.
pub trait Backing: Send {
    /// Lets vCPUs reach slot `slot`. It was closed.
    fn open(&mut self, slot: usize) -> io::Result<()>;

    /// Takes slot `slot` away from vCPUs: none of them reaches it any more when this returns. It was open.
    fn close(&mut self, slot: usize) -> io::Result<()>;

    /// Gives the pages of `len` bytes at `offset` in the region back to the host. They are zeroes to whoever looks at them next.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// How much memory there should be and is, in bytes. Can be looked at without the device's lock.
#[derive(Debug, Default)]
pub struct Levels {
    requested: AtomicU64,
    plugged: AtomicU64,
}

impl Levels {
    /// What the operator wants the guest to use.
    pub fn requested(&self) -> u64 {
        self.requested.load(Ordering::Relaxed)
    }

    /// What the guest has plugged.
    pub fn plugged(&self) -> u64 {
        self.plugged.load(Ordering::Relaxed)
    }
}

/// A region and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Guest address of the region: a multiple of the block's length.
    pub start: u64,
    /// Its length in bytes: a multiple of the slot's length.
    pub len: u64,
    /// Length of a block in bytes, a power of two: what the driver plugs at a time.
    pub block_len: u64,
    /// Length of a slot in bytes, a multiple of the block's: what vCPUs are given or denied at a time.
    pub slot_len: u64,
}

#[cfg(test)]
mod tests;
