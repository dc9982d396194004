//! One lane of a cell: a part of the device and its rings, under a lock that whoever serves them holds.
//!
//! Most devices have one lane. One with several queues that may be served side by side has more: each is a [`Subscriber`] of its own, so
//! each can be on another thread. What one lane does is never under another one's lock, nor under that of the registers.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::super::any::AnyDevice;
use super::super::device::{Doorbells, Rings, VirtioDevice};
use super::super::queue::{Position, RingError, VirtQueue, Visit};
use super::{State, VirtioCell, bell};
use crate::event::{Interest, Source, Subscriber};

/// A lane has the tokens from its index times this on.
const TOKENS: u32 = 1 << 20;
/// First token of the doorbells; a device's own sources are below.
pub(super) const DOORBELLS: u32 = 1 << 16;
/// Token of the control bell.
pub(super) const CONTROL: u32 = TOKENS - 1;

/// A lane. Where it is in the order of locks: see [`super`].
pub(super) struct Lane {
    /// Has its event loop look at everything; that of the first lane also activates the device.
    pub(super) control: EventFd,
    work: Mutex<Work>,
}

/// What a lane works with.
pub(super) struct Work {
    pub(super) device: AnyDevice,
    /// Of a driver that is at work.
    pub(super) rings: Option<Rings>,
    /// The machine is paused: events are ignored, and everything is looked at again on resume.
    pub(super) paused: bool,
    /// Whose rings these are, see [`super::Front::life`].
    pub(super) life: u64,
}

/// What is to be looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    /// A queue whose doorbell rang, by its index in the device.
    Queue(u16),
    /// A source of the device's, by its token.
    Source(u32),
    /// All of that.
    Everything,
}

impl Lane {
    pub(super) fn new(device: AnyDevice) -> std::io::Result<Self> {
        Ok(Self { control: bell()?, work: Mutex::new(Work { device, rings: None, paused: false, life: 0 }) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Work> {
        // As for the registers' lock.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Nothing is in flight any more, and the rings are gone.
    pub(super) fn stop(&mut self) {
        self.device.get_mut().reset();
        self.rings = None;
    }

    /// Completes what is in flight.
    pub(super) fn quiesce(&mut self) -> Result<(), RingError> {
        match &mut self.rings {
            Some(rings) => self.device.get_mut().quiesce(rings),
            None => Ok(()),
        }
    }

    /// Adds where each of its queues stands, by its index.
    pub(super) fn enter_positions(&self, positions: &mut Vec<(u16, Position)>) {
        positions.extend(self.queues().iter().map(|queue| (queue.index(), queue.position())));
    }

    fn queues(&self) -> &[VirtQueue] {
        self.rings.as_ref().map_or(&[], |rings| &rings.queues)
    }

    fn has(&self, index: u16) -> bool {
        self.queues().iter().any(|queue| queue.index() == index)
    }

    fn see(&mut self, look: Look, cell: &VirtioCell) -> Result<(), RingError> {
        match look {
            Look::Queue(index) => self.visit(index, cell),
            Look::Source(token) => self.visit_source(token, cell),
            Look::Everything => {
                let indexes: Vec<u16> = self.queues().iter().map(VirtQueue::index).collect();
                indexes.into_iter().try_for_each(|index| self.visit(index, cell))?;
                let sources = self.device.get().sources();
                sources.iter().try_for_each(|source| self.visit_source(source.token, cell))
            }
        }
    }

    fn visit(&mut self, index: u16, cell: &VirtioCell) -> Result<(), RingError> {
        let Some(rings) = &mut self.rings else { return Ok(()) };
        let Some(place) = (0u16..).zip(&rings.queues).find(|(_, queue)| queue.index() == index) else { return Ok(()) };
        let place = place.0;
        if visited(&mut self.device, rings, |device, rings| device.on_doorbell(place, rings))? == Visit::More {
            cell.ring_doorbell(index.into());
        }
        self.announce_change(cell);
        Ok(())
    }

    fn visit_source(&mut self, token: u32, cell: &VirtioCell) -> Result<(), RingError> {
        let Some(rings) = &mut self.rings else { return Ok(()) };
        visited(&mut self.device, rings, |device, rings| device.on_source(token, rings))?;
        self.announce_change(cell);
        Ok(())
    }

    fn announce_change(&mut self, cell: &VirtioCell) {
        if self.device.get_mut().take_config_change() {
            cell.announce_change(self.rings.is_some());
        }
    }
}

/// Lets the device work on its rings, and counts the malformed chains that it met.
fn visited<T>(
    device: &mut AnyDevice,
    rings: &mut Rings,
    work: impl FnOnce(&mut dyn VirtioDevice, &mut Rings) -> T,
) -> T {
    let bad_chains = |rings: &Rings| rings.queues.iter().map(VirtQueue::bad_chains).sum::<u64>();
    let before = bad_chains(rings);
    let outcome = work(device.get_mut(), rings);
    let met = bad_chains(rings).saturating_sub(before);
    if met != 0 {
        device.get().faults().chains.add(met);
    }
    outcome
}

impl VirtioCell {
    /// How many lanes it has: by so many event loops it can be served.
    pub fn lane_count(&self) -> usize {
        self.others.len().saturating_add(1)
    }

    fn lane(&self, at: usize) -> Option<&Lane> {
        self.lanes().nth(at)
    }

    /// A source of the device's own, in this lane, became ready.
    pub(in crate::virtio) fn source_ready(&self, lane: usize, token: u32) {
        self.see(lane, Look::Source(token));
    }

    pub(super) fn see(&self, at: usize, look: Look) {
        let Some(lane) = self.lane(at) else { return };
        let mut work = lane.lock();
        if work.paused {
            return;
        }
        if let Look::Queue(index) = look
            && at != 0
            && !work.has(index)
        {
            // By the features that the driver chose it is one of the first lane's.
            drop(work);
            return self.see(0, look);
        }
        if let Err(error) = work.see(look, self) {
            let life = work.life;
            work.stop();
            drop(work);
            self.give_up_life(life, &error.to_string());
        }
    }

    pub(super) fn lane_sources(&self, at: usize) -> Vec<Source> {
        let Some(lane) = self.lane(at) else { return Vec::new() };
        let watch = |fd, token| Source { fd, interest: Interest::Readable, token };
        let mut sources = vec![watch(lane.control.as_raw_fd(), CONTROL)];
        let place = |index| self.first.lock().device.get().lane_of(index, u64::MAX);
        let bells = (0u16..).zip(&self.doorbells).filter(|(index, _)| place(*index) == at);
        if matches!(self.hears, Doorbells::Watched) {
            sources.extend(bells.map(|(index, bell)| watch(bell.as_raw_fd(), DOORBELLS.saturating_add(index.into()))));
        }
        sources.extend(lane.lock().device.get().sources());
        let first = u32::try_from(at).unwrap_or(u32::MAX).saturating_mul(TOKENS);
        sources.iter().map(|source| Source { token: source.token.saturating_add(first), ..*source }).collect()
    }

    pub(super) fn lane_ready(&self, token: u32) {
        let (at, token) = ((token / TOKENS) as usize, token % TOKENS);
        if token != CONTROL {
            let look = match token.checked_sub(DOORBELLS) {
                Some(index) => Look::Queue(index as u16),
                None => Look::Source(token),
            };
            return self.see(at, look);
        }
        if at != 0 {
            return self.see(at, Look::Everything);
        }
        let mut front = self.lock();
        let waits = matches!(front.state, State::Activating(_));
        self.activate(&mut front);
        let begins = waits && matches!(front.state, State::Live);
        drop(front);
        if begins {
            self.look_at_all();
        }
    }
}

/// A lane of a cell as a subscriber, for an event loop that serves it and not the whole device.
pub struct LaneSeat {
    cell: Arc<VirtioCell>,
    lane: usize,
}

impl LaneSeat {
    /// Of the lane with this index. The first one, 0, is the one that activates the device.
    pub fn new(cell: Arc<VirtioCell>, lane: usize) -> Self {
        Self { cell, lane }
    }
}

impl Subscriber for LaneSeat {
    fn sources(&self) -> Vec<Source> {
        self.cell.lane_sources(self.lane)
    }

    fn ready(&self, token: u32) {
        self.cell.lane_ready(token);
    }
}
