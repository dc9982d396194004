//! The engine that has the kernel do the work while the device goes on: io_uring, by way of the machine's one ring.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::hub::{Completion, UringHub};
use super::sync::{self, PUNCH, ZERO};
use super::{Disk, Finished, Submitted, Work};
use crate::sys::iovec::GuestIoVec;
use crate::sys::uring::Op;
use crate::virtio::chain;
use crate::virtio::queue::MAX_SIZE;

/// What is in flight under a tag.
#[derive(Debug, Clone, Copy)]
enum Job {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    Zero { offset: u64, len: u64, unmap: bool },
}

/// Room for one request. The pieces stay put while it is in flight, and their room is kept for the next one.
#[derive(Debug, Default)]
struct Slot {
    job: Option<Job>,
    pieces: Vec<GuestIoVec>,
}

/// A drive on the ring.
pub(in crate::virtio::block) struct Uring {
    hub: Arc<UringHub>,
    seat: usize,
    /// For what the ring is not asked to do.
    file: File,
    slots: Box<[Slot]>,
    completed: Vec<Completion>,
    /// Work that the ring did not take, already answered.
    refused: Vec<Finished>,
}

impl Uring {
    pub(in crate::virtio::block) fn new(hub: Arc<UringHub>, file: File) -> io::Result<Self> {
        let seat = hub.sit(&file)?;
        let slots = (0..MAX_SIZE).map(|_| Slot::default()).collect();
        Ok(Self { hub, seat, file, slots, completed: Vec::new(), refused: Vec::new() })
    }

    /// Queues the job of `tag`. If the ring does not take it, it fails.
    fn push(&mut self, tag: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        let pieces = slot.pieces.as_slice();
        let op = match slot.job {
            None => return,
            Some(Job::Read { offset }) => Op::Read { offset, pieces },
            Some(Job::Write { offset }) => Op::Write { offset, pieces },
            Some(Job::Flush) => Op::Sync,
            Some(Job::Discard { offset, len }) => Op::Allocate { mode: PUNCH, offset, len },
            Some(Job::Zero { offset, len, unmap }) => {
                Op::Allocate { mode: if unmap { PUNCH } else { ZERO }, offset, len }
            }
        };
        if let Err(error) = self.hub.push(self.seat, tag, op) {
            slot.job = None;
            self.refused.push(Finished { tag, result: Err(error) });
        }
    }

    /// Decides what a completion means. `None` if there is more to do, which has been queued.
    fn conclude(&mut self, tag: u16, result: i32) -> Option<Finished> {
        let slot = self.slots.get_mut(usize::from(tag))?;
        let job = slot.job?;
        let count = match u32::try_from(result) {
            Ok(count) => count as usize,
            Err(_) => {
                let error = io::Error::from_raw_os_error(result.saturating_neg());
                if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                    self.push(tag);
                    return None;
                }
                slot.job = None;
                // What a file system cannot do in its own way is done in the plain one.
                let result = match job {
                    Job::Discard { offset, len } if sync::is_unsupported(&error) => {
                        sync::perform(&self.file, Work::Discard { offset, len })
                    }
                    Job::Zero { offset, len, unmap } if sync::is_unsupported(&error) => {
                        sync::perform(&self.file, Work::Zero { offset, len, unmap })
                    }
                    _ => Err(error),
                };
                return Some(Finished { tag, result });
            }
        };
        let (Job::Read { offset } | Job::Write { offset }) = job else {
            slot.job = None;
            return Some(Finished { tag, result: Ok(()) });
        };
        let left = GuestIoVec::total(&slot.pieces).saturating_sub(count);
        if left == 0 || count == 0 {
            slot.job = None;
            // The file ends before the capacity: somebody cut it.
            let result = if left == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            return Some(Finished { tag, result });
        }
        let mut rest = Vec::with_capacity(slot.pieces.len());
        // Cannot fail: what is left is within the pieces.
        let _ = chain::cut(&slot.pieces, count, left, &mut rest);
        slot.pieces = rest;
        let offset = offset.saturating_add(count as u64);
        slot.job = Some(match job {
            Job::Read { .. } => Job::Read { offset },
            _ => Job::Write { offset },
        });
        self.push(tag);
        None
    }

    /// Concludes what is in `completed`; `true` if something was queued again.
    fn conclude_all(&mut self, finished: &mut Vec<Finished>) -> bool {
        let mut again = false;
        let mut completed = std::mem::take(&mut self.completed);
        for (tag, result) in completed.drain(..) {
            match self.conclude(tag, result) {
                Some(done) => finished.push(done),
                None => again = true,
            }
        }
        self.completed = completed;
        finished.append(&mut self.refused);
        again
    }
}

impl Disk for Uring {
    fn submit(&mut self, tag: u16, work: Work<'_>) -> Submitted {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else {
            return Submitted::Done(Err(io::ErrorKind::InvalidInput.into()));
        };
        slot.pieces.clear();
        slot.job = Some(match work {
            Work::Read { offset, pieces } => {
                slot.pieces.extend_from_slice(pieces);
                Job::Read { offset }
            }
            Work::Write { offset, pieces } => {
                slot.pieces.extend_from_slice(pieces);
                Job::Write { offset }
            }
            Work::Flush => Job::Flush,
            Work::Discard { offset, len } => Job::Discard { offset, len },
            Work::Zero { offset, len, unmap } => Job::Zero { offset, len, unmap },
        });
        self.push(tag);
        Submitted::Later
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.hub.reap(self.seat, &mut self.completed);
        while self.conclude_all(finished) {
            self.hub.reap(self.seat, &mut self.completed);
        }
    }

    fn drain(&mut self, finished: &mut Vec<Finished>) {
        self.hub.drain(self.seat, &mut self.completed);
        while self.conclude_all(finished) {
            self.hub.drain(self.seat, &mut self.completed);
        }
    }

    fn replace(&mut self, file: File) -> io::Result<()> {
        self.hub.replace(self.seat, &file)?;
        self.file = file;
        Ok(())
    }

    fn seat(&self) -> Option<usize> {
        Some(self.seat)
    }

    fn sync_now(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut forgotten = Vec::new();
        self.drain(&mut forgotten);
        self.hub.leave(self.seat);
    }
}
