//! An io_uring, shared by `Async` drives. A machine has one; more if a drive has queues that several threads serve. What is called a drive
//! here is a lane of one.
//!
//! Lock order: a lane's lock, then the ring's. The ring's lock is never held while a lane's is taken, nor while waiting for the kernel.
//!
//! Any thread that holds the ring's lock may sort completions to the drives they belong to; whose turn it is to answer its driver is
//! another matter: a drive does that for itself when it is visited, and the event loop visits it when this hub, a subscriber, hears the
//! kernel. A thread that drains a drive (a vCPU in a reset) waits in the kernel without the lock; meanwhile only it sorts completions,
//! because a result that another thread takes between its last look and its wait would leave it waiting for one that never comes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::super::device::COMPLETIONS;
use crate::event::{Interest, Source, Subscriber};
use crate::sys::uring::{Full, Op, Ring, Waiter};
use crate::virtio::cell::VirtioCell;
use crate::virtio::queue::MAX_SIZE;

/// One io_uring for all `Async` drives that one event loop serves. Add it to that and [`attach`](Self::attach) every drive's cell.
pub struct UringHub {
    shared: Mutex<Shared>,
    /// Completions were sorted by the thread that waits for them.
    sorted: Condvar,
    waiter: Waiter,
    event: EventFd,
    cells: Mutex<Vec<(Weak<VirtioCell>, usize)>>,
}

/// What is behind the ring's lock.
pub(super) struct Shared {
    ring: Ring,
    drives: Vec<Drive>,
    /// A thread waits in the kernel; only it may take completions.
    waiting: bool,
}

#[derive(Default)]
struct Drive {
    taken: bool,
    in_flight: usize,
    /// Finished and not yet fetched: tag and result.
    done: Vec<(u16, i32)>,
    /// The event loop should visit the drive.
    ready: bool,
    /// So should it if nothing is finished: the drive has work that the ring did not take.
    again: bool,
}

impl std::fmt::Debug for UringHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringHub").finish_non_exhaustive()
    }
}

impl UringHub {
    /// A ring for at most `drives` drives.
    ///
    /// # Errors
    /// As [`Ring::new`]: io_uring may be switched off, filtered, missing or too old.
    pub fn new(drives: usize) -> io::Result<Arc<Self>> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let seats = u32::try_from(drives.max(1)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = Ring::new(seats, seats.saturating_mul(MAX_SIZE.into()), &event)?;
        let waiter = ring.waiter()?;
        let drives = (0..seats).map(|_| Drive::default()).collect::<Vec<_>>();
        let cells = drives.iter().map(|_| (Weak::new(), 0)).collect();
        Ok(Arc::new(Self {
            shared: Mutex::new(Shared { ring, drives, waiting: false }),
            sorted: Condvar::new(),
            waiter,
            event,
            cells: Mutex::new(cells),
        }))
    }

    /// Has the drive in `seat` (see [`super::super::Block::uring_seat`]) visited through that lane of `cell` when its work completes.
    pub fn attach(&self, seat: usize, cell: &Arc<VirtioCell>, lane: usize) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cells.get_mut(seat) {
            *place = (Arc::downgrade(cell), lane);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the event loop to come by, for what the kernel will not announce.
    pub(super) fn nudge(&self) {
        let _ = self.event.write(1);
    }

    /// Takes a seat for a new drive.
    pub(super) fn sit(&self, file: &File) -> io::Result<usize> {
        let mut shared = self.lock();
        let free = shared.drives.iter().position(|drive| !drive.taken);
        let seat = free.ok_or_else(|| io::Error::other("every seat of the io_uring is taken"))?;
        shared.ring.set_file(slot(seat), Some(file))?;
        if let Some(drive) = shared.drives.get_mut(seat) {
            *drive = Drive { taken: true, done: Vec::with_capacity(MAX_SIZE.into()), ..Drive::default() };
        }
        Ok(seat)
    }

    /// Gives a seat back. Nothing of the drive is in flight.
    pub(super) fn leave(&self, seat: usize) {
        let mut shared = self.lock();
        if let Err(error) = shared.ring.set_file(slot(seat), None) {
            log::warn!("the io_uring keeps a drive's file open: {error}");
        }
        if let Some(drive) = shared.drives.get_mut(seat) {
            *drive = Drive::default();
        }
    }

    /// Waits until something of the drive is finished, or nothing is in flight. May return early.
    pub(super) fn wait(&self, seat: usize) {
        let mut shared = self.lock();
        shared.sort();
        if !shared.is_busy(seat) {
            return;
        }
        if shared.ring.flush().is_err() {
            // Part of what is counted as in flight may not be in the kernel, so waiting there is no way to get on.
            drop(shared);
            std::thread::yield_now();
            return;
        }
        if shared.waiting {
            drop(self.sorted.wait(shared));
            return;
        }
        shared.waiting = true;
        drop(shared);
        self.waiter.wait();
        let mut shared = self.lock();
        shared.waiting = false;
        shared.sort();
        let others = shared.others_ready(seat);
        drop(shared);
        self.sorted.notify_all();
        if others {
            // The event loop heard the kernel while it was not its turn.
            self.nudge();
        }
    }

    fn next_ready(&self, from: usize) -> Option<usize> {
        let mut shared = self.lock();
        shared.sort();
        let (drive, at) =
            shared.drives.iter_mut().zip(0usize..).find(|(drive, at)| (drive.ready || drive.again) && *at >= from)?;
        drive.ready = false;
        drive.again = false;
        Some(at)
    }
}

impl Shared {
    /// Adds an entry of the drive, to be submitted by [`Self::flush`].
    pub(super) fn push(&mut self, seat: usize, tag: u16, op: Op<'_>) -> Result<(), Full> {
        let drive = self.drives.get_mut(seat).ok_or(Full)?;
        self.ring.push(slot(seat), op, (seat as u64) << 16 | u64::from(tag))?;
        drive.in_flight = drive.in_flight.saturating_add(1);
        Ok(())
    }

    /// Hands the entries to the kernel, and takes what is finished at once without the event loop hearing of it: the caller looks for it
    /// here. `false` if the kernel did not take everything.
    pub(super) fn exchange(&mut self) -> bool {
        let flushed = self.ring.quietly(Ring::flush).is_ok();
        self.sort();
        flushed
    }

    /// Whether drives other than the one in `seat` have something to hear.
    pub(super) fn others_ready(&self, seat: usize) -> bool {
        self.drives.iter().enumerate().any(|(at, drive)| drive.ready && at != seat)
    }

    /// Sorts completions to the drives they belong to, unless it is another thread's turn.
    pub(super) fn sort(&mut self) {
        if self.waiting {
            return;
        }
        loop {
            while let Some((user_data, result)) = self.ring.pop() {
                let Some(drive) = self.drives.get_mut((user_data >> 16) as usize) else { continue };
                drive.in_flight = drive.in_flight.saturating_sub(1);
                drive.done.push((user_data as u16, result));
                drive.ready = true;
            }
            if !self.ring.fetch_overflow() {
                return;
            }
        }
    }

    /// Has the event loop visit the drive though nothing of it is finished.
    pub(super) fn visit_again(&mut self, seat: usize) {
        if let Some(drive) = self.drives.get_mut(seat) {
            drive.again = true;
        }
    }

    /// Swaps the drive's finished work for the empty `done`. `true` if there is some.
    pub(super) fn fetch(&mut self, seat: usize, done: &mut Vec<(u16, i32)>) -> bool {
        if let Some(drive) = self.drives.get_mut(seat) {
            std::mem::swap(&mut drive.done, done);
            drive.ready = false;
        }
        !done.is_empty()
    }

    /// Puts another file into the drive's place.
    pub(super) fn set_file(&mut self, seat: usize, file: &File) -> io::Result<()> {
        self.ring.set_file(slot(seat), Some(file))
    }

    /// Whether the drive has work in flight and none finished.
    fn is_busy(&self, seat: usize) -> bool {
        self.drives.get(seat).is_some_and(|drive| drive.in_flight > 0 && drive.done.is_empty())
    }

    /// Whether the drive has work in flight or finished and not fetched.
    pub(super) fn has_work(&self, seat: usize) -> bool {
        self.drives.get(seat).is_some_and(|drive| drive.in_flight > 0 || !drive.done.is_empty())
    }
}

/// Seats are few.
fn slot(seat: usize) -> u32 {
    u32::try_from(seat).unwrap_or(u32::MAX)
}

impl Subscriber for UringHub {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.event.as_raw_fd(), interest: Interest::Readable, token: 0 }]
    }

    /// Visits the drives with finished work.
    fn ready(&self, _token: u32) {
        if self.lock().ring.flush().is_err() {
            // The kernel is short of memory and has not taken everything: try again after others had their turn.
            self.nudge();
        }
        let mut from = 0;
        while let Some(seat) = self.next_ready(from) {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            let cell = cells.get(seat).and_then(|(cell, lane)| Some((cell.upgrade()?, *lane)));
            drop(cells);
            if let Some((cell, lane)) = cell {
                cell.source_ready(lane, COMPLETIONS);
            }
            from = seat.saturating_add(1);
        }
    }
}
