//! How far a snapshot is that is being written, and that it need not be.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the thread that writes and those who ask.
#[derive(Debug)]
pub struct Progress {
    done: AtomicU64,
    total: u64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Of memory of so many bytes.
    pub fn new(total: u64) -> Self {
        Self { done: AtomicU64::new(0), total, cancelled: AtomicBool::new(false) }
    }

    /// So many bytes more are done with. Fails if nobody wants the snapshot any more.
    pub fn advance(&self, bytes: u64) -> io::Result<()> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was cancelled"));
        }
        Ok(())
    }

    /// Nobody wants it any more.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes of memory that are done with, written or skipped, and all bytes.
    pub fn look(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total)
    }
}
