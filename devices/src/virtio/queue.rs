//! A split virtqueue (virtio 1.3 §2.7) as devices use it.
//!
//! Ring bookkeeping is `virtio-queue`'s. This room adds what every device needs and none should write again: chains checked in one
//! place, notification suppression both ways, one interrupt per batch, and a bound on how long one visit may last.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{BadChain, Chain, Table};
use super::registers::Area;
use crate::irq::VirtioIrq;
use crate::ram::{self, GuestRam};

/// Largest queue any device offers.
pub const MAX_SIZE: u16 = 256;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Size, addresses and readiness of a queue as a driver set them, not yet checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Geometry {
    /// Number of entries.
    pub size: u16,
    /// The driver enabled the queue.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring ("driver area").
    pub available: u64,
    /// Used ring ("device area").
    pub used: u64,
}

impl Geometry {
    /// Where one of its three parts is.
    pub fn address(mut self, area: Area) -> u64 {
        *self.address_mut(area)
    }

    pub(super) fn address_mut(&mut self, area: Area) -> &mut u64 {
        match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Available => &mut self.available,
            Area::Used => &mut self.used,
        }
    }
}

/// Where the device is on the rings of a queue with nothing in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Index of the next chain to take from the available ring.
    pub next_avail: u16,
    /// Index of the next entry of the used ring.
    pub next_used: u16,
}

/// Why a queue cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQueue {
    /// Not a power of two between 1 and the maximum.
    #[error("queue size {0} is not a power of two from 1 to {1}")]
    Size(u16, u16),
    /// A ring is misaligned or not wholly in one region of RAM.
    #[error("{0} at {1:#x} is misaligned or not in RAM")]
    Place(&'static str, u64),
    /// Two rings share memory.
    #[error("the rings overlap")]
    Overlap,
}

/// The rings are not as a driver may leave them; the device needs a reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("broken ring: {0}")]
pub struct RingError(String);

impl RingError {
    /// For what only a device can notice.
    pub(super) fn new(what: &str) -> Self {
        Self(what.to_owned())
    }

    pub(super) fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// What a device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Finished; so many bytes were written to its writable buffers.
    Done {
        /// Bytes written.
        written: u32,
    },
    /// In flight; the device will call [`VirtQueue::complete`] with its head.
    Later,
    /// Cannot be served now. It goes back on the ring and serving stops.
    PutBack,
}

/// How a visit to a queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// The ring is empty (or the device put a chain back); the driver will ring the doorbell.
    Idle,
    /// A ring's worth of chains was served and there is more: come back soon, after others had their turn.
    More,
}

/// One queue of an active device.
#[derive(Debug)]
pub struct VirtQueue {
    ring: Queue,
    index: u16,
    indirect: bool,
    chain: Chain,
    bad_chains: u64,
    /// Chains were completed since the driver was last notified.
    unannounced: bool,
    /// The used index when it was.
    announced: u16,
}

impl VirtQueue {
    /// Checks a driver's geometry and makes a queue of it. A queue that is not ready is made too, and is always empty.
    pub fn new(
        index: u16,
        max_size: u16,
        geometry: Geometry,
        event_idx: bool,
        indirect: bool,
        ram: &GuestRam,
    ) -> Result<Self, BadQueue> {
        let Geometry { size, ready, descriptors, available, used } = geometry;
        let bad_size = BadQueue::Size(size, max_size);
        let mut ring = Queue::new(max_size).map_err(|_| bad_size.clone())?;
        if ready {
            if size == 0 || size > max_size || !size.is_power_of_two() {
                return Err(bad_size);
            }
            let entries = u64::from(size);
            // §2.7: 16 n, 6 + 2 n and 6 + 8 n bytes, aligned to 16, 2 and 4.
            let areas = [
                ("the descriptor table", descriptors, entries.saturating_mul(16), 16),
                ("the available ring", available, entries.saturating_mul(2).saturating_add(6), 2),
                ("the used ring", used, entries.saturating_mul(8).saturating_add(6), 4),
            ];
            for (name, addr, len, align) in areas {
                if addr == 0 || !addr.is_multiple_of(align) || !ram::contains(ram, addr, len) {
                    return Err(BadQueue::Place(name, addr));
                }
            }
            for (i, (_, a, a_len, _)) in areas.iter().enumerate() {
                for (_, b, b_len, _) in areas.iter().skip(i.saturating_add(1)) {
                    if *a < b.saturating_add(*b_len) && *b < a.saturating_add(*a_len) {
                        return Err(BadQueue::Overlap);
                    }
                }
            }
            ring.set_size(size);
            let place = |name, addr| move |_| BadQueue::Place(name, addr);
            ring.try_set_desc_table_address(GuestAddress(descriptors))
                .map_err(place("the descriptor table", descriptors))?;
            ring.try_set_avail_ring_address(GuestAddress(available)).map_err(place("the available ring", available))?;
            ring.try_set_used_ring_address(GuestAddress(used)).map_err(place("the used ring", used))?;
            ring.set_event_idx(event_idx);
            ring.set_ready(true);
        }
        Ok(Self { ring, index, indirect, chain: Chain::new(), bad_chains: 0, unannounced: false, announced: 0 })
    }

    /// Where the device is. Means something only while nothing is in flight.
    pub fn position(&self) -> Position {
        Position { next_avail: self.ring.next_avail(), next_used: self.ring.next_used() }
    }

    /// Goes on from a position that was saved. One that the driver's ring contradicts shows at the next [`Self::pop`].
    pub fn go_to(&mut self, position: Position) {
        self.ring.set_next_avail(position.next_avail);
        self.ring.set_next_used(position.next_used);
        self.announced = position.next_used;
    }

    /// Which queue of the device this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it lies and whether it is ready, as it was checked.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            size: self.ring.size(),
            ready: self.ring.ready(),
            descriptors: self.ring.desc_table(),
            available: self.ring.avail_ring(),
            used: self.ring.used_ring(),
        }
    }

    /// Whether the driver uses it.
    pub fn is_ready(&self) -> bool {
        self.ring.ready()
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains so far that were malformed and given back unserved.
    pub fn bad_chains(&self) -> u64 {
        self.bad_chains
    }

    /// Takes the next chain into `chain`; `false` if there is none. A malformed chain is given back with nothing written, counted,
    /// and passed over.
    pub fn pop(&mut self, ram: &GuestRam, chain: &mut Chain) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        let table =
            Table { addr: GuestAddress(self.ring.desc_table()), size: self.ring.size(), indirect: self.indirect };
        // A driver that keeps adding malformed chains must not keep us here for ever.
        for _ in 0..=table.size {
            let head = {
                let mut available = self.ring.iter(ram).map_err(RingError::of)?;
                match available.next() {
                    Some(next) => next.head_index(),
                    None => return Ok(false),
                }
            };
            if head >= table.size {
                return Err(RingError::of(BadChain::Index(head)));
            }
            match chain.load(ram, table, head) {
                Ok(()) => return Ok(true),
                Err(bad) => {
                    self.bad_chains = self.bad_chains.saturating_add(1);
                    crate::guest_warn!("queue {}: malformed descriptor chain at {head}: {bad}", self.index);
                    self.complete(ram, head, 0)?;
                }
            }
        }
        Err(RingError::of("a whole ring of malformed chains"))
    }

    /// Puts the last `chains` popped chains back on the ring, unserved. Not past a malformed chain, which was completed and would come
    /// again: [`Self::bad_chains`] tells whether there was one.
    pub fn put_back(&mut self, chains: u16) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(chains));
    }

    /// Gives a chain back to the driver with `written` bytes in its writable buffers. The driver hears of it at [`Self::notify`].
    pub fn complete(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), RingError> {
        self.unannounced = true;
        self.ring.add_used(ram, head, written).map_err(RingError::of)
    }

    /// Gives several chains back at once: the driver sees all of them or none. Receive buffers that make up one frame need this
    /// (§5.1.6.4.1).
    pub fn complete_together(&mut self, ram: &GuestRam, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let Some(((head, written), earlier)) = chains.split_last() else { return Ok(()) };
        let mut next = self.ring.next_used();
        for (head, written) in earlier {
            let slot = next.checked_rem(self.ring.size()).unwrap_or(0);
            let at = self.ring.used_ring().saturating_add(4).saturating_add(u64::from(slot).saturating_mul(8));
            let element = u64::from(*head) | (u64::from(*written) << 32);
            ram.write_obj(element.to_le(), GuestAddress(at)).map_err(RingError::of)?;
            next = next.wrapping_add(1);
        }
        // The last one goes the usual way, which publishes the index past all of them.
        self.ring.set_next_used(next);
        self.complete(ram, *head, *written)
    }

    /// Interrupts the driver if something was completed since the last call and it wants to hear of it. Call once per batch.
    pub fn notify(&mut self, ram: &GuestRam, irq: &dyn VirtioIrq) -> Result<(), RingError> {
        if !std::mem::take(&mut self.unannounced) {
            return Ok(());
        }
        // The used index must be visible before the driver's wish is read, or both sides may go to sleep (§2.7.10).
        std::sync::atomic::fence(Ordering::SeqCst);
        let new = self.ring.next_used();
        let old = std::mem::replace(&mut self.announced, new);
        let wanted = if self.ring.event_idx_enabled() {
            // used_event follows the ring's entries: interrupt if it was passed (§2.7.10.1).
            let at =
                self.ring.avail_ring().saturating_add(4).saturating_add(u64::from(self.ring.size()).saturating_mul(2));
            let event: u16 = ram.load(GuestAddress(at), Ordering::Relaxed).map_err(RingError::of)?;
            new.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 =
                ram.load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed).map_err(RingError::of)?;
            u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            irq.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver to ring the doorbell again. `true` if chains arrived meanwhile, for which it will not ring.
    pub fn arm(&mut self, ram: &GuestRam) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        self.ring.enable_notification(ram).map_err(RingError::of)
    }

    /// Tells the driver that it need not ring for now.
    pub fn disarm(&mut self, ram: &GuestRam) -> Result<(), RingError> {
        if !self.ring.ready() {
            return Ok(());
        }
        self.ring.disable_notification(ram).map_err(RingError::of)
    }

    /// Whether chains wait on the ring.
    pub fn has_available(&self, ram: &GuestRam) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        let available = self.ring.avail_idx(ram, Ordering::Acquire).map_err(RingError::of)?;
        Ok(available != Wrapping(self.ring.next_avail()))
    }

    /// Hands the waiting chains to `serve`, at most about a ring's worth, completes those that are done, and interrupts once.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
        mut serve: impl FnMut(&Chain) -> Served,
    ) -> Result<Visit, RingError> {
        let mut budget = self.ring.size();
        let mut visit = Visit::More;
        // Taken out so that the queue can be changed while the chain is looked at; put back below, so it still allocates only once.
        let mut chain = std::mem::take(&mut self.chain);
        let outcome = (|| {
            self.disarm(ram)?;
            while budget > 0 {
                if !self.pop(ram, &mut chain)? {
                    if self.arm(ram)? {
                        // Costs budget too: a driver that moves its index back and forth must not keep us here.
                        budget = budget.saturating_sub(1);
                        continue;
                    }
                    visit = Visit::Idle;
                    break;
                }
                budget = budget.saturating_sub(1);
                match serve(&chain) {
                    Served::Done { written } => self.complete(ram, chain.head(), written)?,
                    Served::Later => {}
                    Served::PutBack => {
                        self.put_back(1);
                        visit = Visit::Idle;
                        break;
                    }
                }
            }
            self.notify(ram, irq)
        })();
        self.chain = chain;
        outcome.map(|()| visit)
    }
}

#[cfg(test)]
mod tests;
