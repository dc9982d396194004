//! How requests reach the file: one trait, two engines.
//!
//! An engine gets work that was checked (inside the capacity, allowed on this drive) and knows nothing of rings, headers or statuses.

mod hub;
mod sync;
mod uring;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use hub::UringHub;
pub(super) use sync::Sync;
pub(super) use uring::Uring;

use crate::sys::iovec::GuestIoVec;

/// What is to be done to the file. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work<'a> {
    /// Fill the pieces from the file.
    Read { offset: u64, pieces: &'a [GuestIoVec] },
    /// Write the pieces to the file.
    Write { offset: u64, pieces: &'a [GuestIoVec] },
    /// Make what was written durable.
    Flush,
    /// The range is not needed any more; what it reads as afterwards does not matter.
    Discard { offset: u64, len: u64 },
    /// The range must read as zeroes; it may lose its place on the disk if `unmap`.
    Zero { offset: u64, len: u64, unmap: bool },
}

/// What became of work that was handed in.
#[derive(Debug)]
pub(super) enum Submitted {
    /// It is finished.
    Done(io::Result<()>),
    /// It is in flight; [`Disk::reap`] will report it.
    Later,
}

/// Work that was in flight and is finished.
#[derive(Debug)]
pub(super) struct Finished {
    /// What [`Disk::submit`] was given to tell it by.
    pub tag: u16,
    /// How it ended.
    pub result: io::Result<()>,
}

/// A drive's engine. Memory behind submitted pieces stays mapped until the work is finished.
pub(super) trait Disk: Send {
    /// Takes work known by `tag`, of which no other work in flight has the same. It may not reach the kernel before the next
    /// [`Self::reap`].
    fn submit(&mut self, tag: u16, work: Work<'_>) -> Submitted;

    /// Hands what was submitted to the kernel, in one system call, and appends what is finished to `finished`. Does not wait.
    fn reap(&mut self, finished: &mut Vec<Finished>);

    /// Whether work is left that the kernel did not take at the last [`Self::reap`].
    fn is_throttled(&self) -> bool {
        false
    }

    /// Waits until nothing is in flight and appends what is finished to `finished`.
    fn drain(&mut self, finished: &mut Vec<Finished>);

    /// Goes on with another file. Nothing is in flight. After an error the old file is still in use.
    fn replace(&mut self, file: Arc<File>) -> io::Result<()>;

    /// The file it is on.
    fn file(&self) -> &Arc<File>;

    /// The drive's place on the machine's ring, if it is on one.
    fn seat(&self) -> Option<usize> {
        None
    }

    /// Makes what was written durable, now.
    fn sync_now(&mut self) -> io::Result<()>;
}
