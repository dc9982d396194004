//! The engine that leaves the work to the kernel: requests of one visit are handed over together, completions come when they come.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::hub::UringHub;
use super::{Disk, Finished, Submitted, Work, sync};
use crate::sys::iovec::GuestIoVec;
use crate::sys::uring::Op;
use crate::virtio::chain;
use crate::virtio::queue::MAX_SIZE;

/// Vectors a request may leave allocated behind it.
const KEPT_VECTORS: usize = 32;

/// A drive's share of the machine's io_uring.
pub(in crate::virtio::block) struct Uring {
    hub: Arc<UringHub>,
    seat: usize,
    file: Arc<File>,
    /// By tag.
    flights: Box<[Flight]>,
    /// Tags to be handed to the kernel by the next reap.
    batch: Vec<u16>,
    /// Swapped with the hub's.
    done: Vec<(u16, i32)>,
}

#[derive(Debug, Clone, Copy)]
enum Task {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    Zero { offset: u64, len: u64, unmap: bool },
}

/// Work that was submitted, as far as it is not done yet.
struct Flight {
    task: Task,
    /// Kept here because a short transfer needs them again.
    pieces: Vec<GuestIoVec>,
    left: usize,
}

impl Flight {
    fn op(&self) -> Op<'_> {
        let pieces = self.pieces.as_slice();
        match self.task {
            Task::Read { offset } => Op::Read { offset, pieces },
            Task::Write { offset } => Op::Write { offset, pieces },
            Task::Flush => Op::SyncData,
            Task::Discard { offset, len } | Task::Zero { offset, len, unmap: true } => {
                Op::Allocate { mode: sync::PUNCH, offset, len }
            }
            Task::Zero { offset, len, unmap: false } => Op::Allocate { mode: sync::ZERO, offset, len },
        }
    }

    fn work(&self) -> Work<'_> {
        let pieces = self.pieces.as_slice();
        match self.task {
            Task::Read { offset } => Work::Read { offset, pieces },
            Task::Write { offset } => Work::Write { offset, pieces },
            Task::Flush => Work::Flush,
            Task::Discard { offset, len } => Work::Discard { offset, len },
            Task::Zero { offset, len, unmap } => Work::Zero { offset, len, unmap },
        }
    }

    /// Takes the kernel's answer: how the work ended, or `None` if there is more of it.
    fn advance(&mut self, file: &File, result: i32) -> Option<io::Result<()>> {
        let Ok(count) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(result.saturating_neg());
            let reshape = matches!(self.task, Task::Discard { .. } | Task::Zero { .. }) && sync::is_unsupported(&error);
            let again = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ECANCELED));
            // The plain system calls know other ways for the first and wait for the second.
            return Some(if reshape || again { sync::perform(file, self.work()) } else { Err(error) });
        };
        let (Task::Read { offset } | Task::Write { offset }) = &mut self.task else { return Some(Ok(())) };
        if count >= self.left {
            return Some(Ok(()));
        }
        if count == 0 {
            // The file ends before the capacity: somebody cut it.
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        *offset = offset.saturating_add(count as u64);
        self.left = self.left.saturating_sub(count);
        let mut rest = Vec::with_capacity(self.pieces.len());
        // Cannot fail: `count` and the rest are within the pieces.
        let _ = chain::cut(&self.pieces, count, self.left, &mut rest);
        self.pieces = rest;
        None
    }

    fn tidy(&mut self) {
        self.pieces.clear();
        // 256 requests of 254 pieces each would keep a megabyte for ever.
        self.pieces.shrink_to(KEPT_VECTORS);
    }
}

impl Uring {
    pub(in crate::virtio::block) fn new(hub: Arc<UringHub>, file: Arc<File>) -> io::Result<Self> {
        let seat = hub.sit(&file)?;
        let flight = || Flight { task: Task::Flush, pieces: Vec::new(), left: 0 };
        Ok(Self {
            hub,
            seat,
            file,
            flights: (0..MAX_SIZE).map(|_| flight()).collect(),
            batch: Vec::with_capacity(MAX_SIZE.into()),
            done: Vec::with_capacity(MAX_SIZE.into()),
        })
    }

    /// Hands the batch over and fetches what is finished; `true` if something is.
    fn exchange(&mut self) -> bool {
        let mut shared = self.hub.lock();
        if self.batch.is_empty() {
            shared.sort();
        } else {
            let mut pushed = 0;
            for tag in &self.batch {
                let Some(flight) = self.flights.get(usize::from(*tag)) else { continue };
                // When the ring is full the kernel is asked to make room.
                let room = shared.push(self.seat, *tag, flight.op()).is_ok()
                    || (shared.exchange() && shared.push(self.seat, *tag, flight.op()).is_ok());
                if !room {
                    break;
                }
                pushed += 1;
            }
            self.batch.drain(..pushed);
            let taken = shared.exchange() && self.batch.is_empty();
            if !taken {
                // The kernel is short of memory, or its backlog is long. What is left goes with the next visit; the kernel will not cause
                // one.
                shared.visit_again(self.seat);
            }
            if !taken || shared.others_ready(self.seat) {
                self.hub.nudge();
            }
        }
        shared.fetch(self.seat, &mut self.done)
    }
}

impl Disk for Uring {
    fn submit(&mut self, tag: u16, work: Work<'_>) -> Submitted {
        let Some(flight) = self.flights.get_mut(usize::from(tag)) else {
            return Submitted::Done(Err(io::ErrorKind::InvalidInput.into()));
        };
        flight.pieces.clear();
        flight.task = match work {
            Work::Read { offset, pieces } => {
                flight.pieces.extend_from_slice(pieces);
                Task::Read { offset }
            }
            Work::Write { offset, pieces } => {
                flight.pieces.extend_from_slice(pieces);
                Task::Write { offset }
            }
            Work::Flush => Task::Flush,
            Work::Discard { offset, len } => Task::Discard { offset, len },
            Work::Zero { offset, len, unmap } => Task::Zero { offset, len, unmap },
        };
        flight.left = GuestIoVec::total(&flight.pieces);
        self.batch.push(tag);
        Submitted::Later
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        // More than once only after short transfers, whose rest is handed over here. What is in the page cache is finished at once, so
        // fetching right after submitting saves such requests the way through the event loop.
        while self.exchange() {
            for (tag, result) in self.done.drain(..) {
                let Some(flight) = self.flights.get_mut(usize::from(tag)) else { continue };
                match flight.advance(&self.file, result) {
                    Some(result) => {
                        flight.tidy();
                        finished.push(Finished { tag, result });
                    }
                    None => self.batch.push(tag),
                }
            }
            if self.batch.is_empty() {
                break;
            }
        }
    }

    fn is_throttled(&self) -> bool {
        !self.batch.is_empty()
    }

    fn seat(&self) -> Option<usize> {
        Some(self.seat)
    }

    fn drain(&mut self, finished: &mut Vec<Finished>) {
        loop {
            self.reap(finished);
            if self.batch.is_empty() && !self.hub.lock().has_work(self.seat) {
                return;
            }
            self.hub.wait(self.seat);
        }
    }

    fn replace(&mut self, file: Arc<File>) -> io::Result<()> {
        self.hub.lock().set_file(self.seat, &file)?;
        self.file = file;
        Ok(())
    }

    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn sync_now(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel must not write to memory that is about to be unmapped.
        self.drain(&mut Vec::new());
        self.hub.leave(self.seat);
    }
}
