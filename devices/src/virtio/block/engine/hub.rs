//! The ring that all Async drives of a machine share, and the pump that visits drives whose work has completed.
//!
//! Lock order: a device's cell first, then the ring, never the other way round. So the pump looks at the ring, lets go of it, and only
//! then visits cells.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::super::device::COMPLETIONS;
use crate::event::{Interest, Source, Subscriber};
use crate::sys::uring::{Op, Ring};
use crate::virtio::cell::VirtioCell;

/// Submissions that fit between two visits to the kernel.
const ENTRIES: u32 = 256;

/// A completion on its way to its drive: the tag of the work and its result as a system call would return it.
pub(super) type Completion = (u16, i32);

#[derive(Default)]
struct Drive {
    taken: bool,
    in_flight: usize,
    completed: Vec<Completion>,
}

struct State {
    ring: Ring,
    drives: Vec<Drive>,
}

/// One io_uring for all Async drives of a machine.
pub struct UringHub {
    state: Mutex<State>,
    bell: std::os::fd::RawFd,
    cells: Mutex<Vec<(usize, Weak<VirtioCell>)>>,
}

impl std::fmt::Debug for UringHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UringHub")
    }
}

impl UringHub {
    /// A hub for at most `drives` drives. Fails where the host has no io_uring or does not allow it.
    pub fn new(drives: usize) -> io::Result<Arc<Self>> {
        let ring = Ring::new(ENTRIES, drives)?;
        let bell = ring.bell();
        let drives = (0..drives).map(|_| Drive::default()).collect();
        Ok(Arc::new(Self { state: Mutex::new(State { ring, drives }), bell, cells: Mutex::default() }))
    }

    /// Has the drive in `seat` (see [`super::super::Block::uring_seat`]) visited through `cell` when its work completes.
    pub fn attach(&self, seat: usize, cell: &Arc<VirtioCell>) {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner).push((seat, Arc::downgrade(cell)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a drive on `file` a seat.
    pub(super) fn sit(&self, file: &File) -> io::Result<usize> {
        let mut state = self.lock();
        let seat = state
            .drives
            .iter()
            .position(|drive| !drive.taken)
            .ok_or_else(|| io::Error::other("every seat of the io_uring is taken"))?;
        state.ring.set_file(place(seat), Some(file))?;
        if let Some(drive) = state.drives.get_mut(seat) {
            drive.taken = true;
        }
        Ok(seat)
    }

    /// Takes the seat back. Nothing is in flight.
    pub(super) fn leave(&self, seat: usize) {
        let mut state = self.lock();
        // If it cannot be cleared the file stays open until the next drive takes the seat.
        let _ = state.ring.set_file(place(seat), None);
        if let Some(drive) = state.drives.get_mut(seat) {
            *drive = Drive::default();
        }
    }

    /// Swaps the file of a seat. Nothing is in flight.
    pub(super) fn replace(&self, seat: usize, file: &File) -> io::Result<()> {
        self.lock().ring.set_file(place(seat), Some(file))
    }

    /// Queues work.
    pub(super) fn push(&self, seat: usize, tag: u16, op: Op<'_>) -> io::Result<()> {
        let mut state = self.lock();
        let told_by = (seat as u64) << 16 | u64::from(tag);
        state.ring.push(place(seat), told_by, op)?;
        if let Some(drive) = state.drives.get_mut(seat) {
            drive.in_flight = drive.in_flight.saturating_add(1);
        }
        Ok(())
    }

    /// Sends queued work on its way in one system call and moves this seat's completions to `to`.
    pub(super) fn reap(&self, seat: usize, to: &mut Vec<Completion>) {
        let mut state = self.lock();
        // Much completes during the submission (the page cache); that needs no bell, since it is looked at right here.
        if let Err(error) = state.ring.quietly(|ring| ring.submit(0)) {
            crate::guest_warn!("io_uring: submission failed, it will be tried again: {error}");
        }
        state.collect();
        state.hand_over(seat, to);
    }

    /// Waits until nothing of this seat is in flight and moves its completions to `to`.
    pub(super) fn drain(&self, seat: usize, to: &mut Vec<Completion>) {
        let mut state = self.lock();
        while state.drives.get(seat).is_some_and(|drive| drive.in_flight > 0) {
            if let Err(error) = state.ring.submit(1) {
                crate::guest_warn!("io_uring: waiting failed, it will be tried again: {error}");
            }
            state.collect();
        }
        state.hand_over(seat, to);
    }
}

impl State {
    /// Sorts completions to their drives.
    fn collect(&mut self) {
        let Self { ring, drives } = self;
        ring.completions(|told_by, result| {
            if let Some(drive) = drives.get_mut((told_by >> 16) as usize) {
                drive.in_flight = drive.in_flight.saturating_sub(1);
                drive.completed.push((told_by as u16, result));
            }
        });
    }

    fn hand_over(&mut self, seat: usize, to: &mut Vec<Completion>) {
        if let Some(drive) = self.drives.get_mut(seat) {
            to.append(&mut drive.completed);
        }
    }
}

/// The pump: the bell rings, drives with completions are visited.
impl Subscriber for UringHub {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.bell, interest: Interest::Readable, token: 0 }]
    }

    fn ready(&self, _token: u32) {
        let waiting: Vec<usize> = {
            let mut state = self.lock();
            state.collect();
            let drives = state.drives.iter().enumerate();
            drives.filter(|(_, drive)| !drive.completed.is_empty()).map(|(seat, _)| seat).collect()
        };
        let cells: Vec<Arc<VirtioCell>> = {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            cells.iter().filter(|(seat, _)| waiting.contains(seat)).filter_map(|(_, cell)| cell.upgrade()).collect()
        };
        for cell in cells {
            cell.ready(COMPLETIONS);
        }
    }
}

/// Seats are few.
fn place(seat: usize) -> u32 {
    u32::try_from(seat).unwrap_or(u32::MAX)
}
