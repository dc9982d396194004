//! To the guest: packets into its receive buffers (virtio 1.3 §5.10.6.4).
//!
//! Data goes straight from the host's socket into guest memory, into as many buffers by one read as it is likely to fill. Buffers are
//! taken from the ring beforehand; those that stay empty go back before the visit ends, so nothing is held between visits.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::metrics::VsockMetrics;
use super::muxer::{Muxer, Turn};
use super::packet::{HEADER_LEN, Header};
use super::{MAX_BYTES_PER_VISIT, MAX_PACKETS_PER_VISIT};
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;
use crate::sys::iovec::GuestIoVec;
use crate::sys::unix_stream::MAX_PIECES;
use crate::virtio::chain::{self, Chain};
use crate::virtio::queue::{RingError, VirtQueue, Visit};

/// What a visit to a ring works with.
pub(super) struct Place<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) irq: &'a dyn VirtioIrq,
    pub(super) queue: &'a mut VirtQueue,
    pub(super) muxer: &'a mut Muxer,
    pub(super) metrics: &'a VsockMetrics,
}

/// A chain taken from the ring whose buffers are still empty.
#[derive(Debug)]
struct Held {
    head: u16,
    /// Bytes of data it has room for, behind the header.
    room: u32,
    pieces: Vec<GuestIoVec>,
}

/// The receiving half of the device.
#[derive(Debug, Default)]
pub(super) struct Rx {
    chain: Chain,
    held: VecDeque<Held>,
    /// How many of the held chains, from the last one back, follow each other on the ring.
    returnable: u16,
    /// Lists of pieces to be used again.
    spare: Vec<Vec<GuestIoVec>>,
    /// The ring was empty, and its doorbell is awaited.
    starved: bool,
    /// The doorbell is asked for.
    armed: bool,
    window: Vec<GuestIoVec>,
}

impl Rx {
    /// For a new driver, which rings the doorbell until it is told not to.
    pub(super) fn new() -> Self {
        Self { armed: true, ..Self::default() }
    }

    /// Sends the guest what waits for it, until nothing does, the ring is empty, or the visit has lasted long enough.
    pub(super) fn visit(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        if !place.muxer.has_turns() {
            return Ok(Visit::Idle);
        }
        if self.starved && !place.queue.has_available(place.ram)? {
            // A host that goes on sending must not cost more than this while the guest offers nothing.
            return Ok(Visit::Idle);
        }
        self.starved = false;
        if std::mem::take(&mut self.armed) {
            place.queue.disarm(place.ram)?;
        }
        let outcome = self.send_waiting(place);
        // Also after an error: packets may have been completed before it.
        let released = self.release(place);
        place.queue.notify(place.ram, place.irq)?;
        released?;
        outcome
    }

    fn send_waiting(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        let (mut packets, mut bytes) = (0usize, 0usize);
        while place.muxer.has_turns() {
            if packets >= MAX_PACKETS_PER_VISIT || bytes >= MAX_BYTES_PER_VISIT {
                return Ok(Visit::More);
            }
            // Each round counts, whatever comes of it.
            packets = packets.saturating_add(1);
            if !self.hold(place, 1)? {
                self.armed = true;
                if place.queue.arm(place.ram)? {
                    continue;
                }
                self.starved = true;
                place.metrics.no_rx_avail_buffer.inc();
                return Ok(Visit::Idle);
            }
            match place.muxer.next_turn() {
                None => {}
                Some(Turn::Control(header)) => self.deliver(place, header, 0)?,
                Some(Turn::Data { ticket, credit, appetite }) => {
                    self.hold(place, appetite)?;
                    let offered = self.open_window(credit, appetite);
                    let Some((len, header)) = place.muxer.fetch(ticket, &self.window) else { continue };
                    let used = self.deliver_data(place, header, len)?;
                    place.muxer.learn_appetite(ticket, used, offered);
                    packets = packets.saturating_add(used.into());
                    bytes = bytes.saturating_add(len);
                }
            }
        }
        Ok(Visit::Idle)
    }

    /// Takes chains from the ring until `count` are held. `false` if there is none at all.
    fn hold(&mut self, place: &mut Place<'_>, count: u16) -> Result<bool, RingError> {
        // A whole ring, and the look that finds it empty: useless chains must not keep us here.
        let mut budget = place.queue.size().saturating_add(1);
        while self.held.len() < count.into() && budget > 0 {
            budget = budget.saturating_sub(1);
            let bad_before = place.queue.bad_chains();
            let popped = place.queue.pop(place.ram, &mut self.chain)?;
            if place.queue.bad_chains() != bad_before {
                self.returnable = 0;
            }
            if !popped {
                break;
            }
            let room = self.chain.writable_len().saturating_sub(HEADER_LEN as u32);
            if room == 0 || !self.chain.readable().is_empty() {
                crate::guest_warn!("vsock: a receive buffer has no room for a packet with data or is not writable");
                place.queue.complete(place.ram, self.chain.head(), 0)?;
                self.returnable = 0;
                continue;
            }
            let mut pieces = self.spare.pop().unwrap_or_default();
            pieces.clear();
            pieces.extend_from_slice(self.chain.writable());
            self.held.push_back(Held { head: self.chain.head(), room, pieces });
            self.returnable = self.returnable.saturating_add(1);
        }
        Ok(!self.held.is_empty())
    }

    /// Makes `window` the places for data of the first held chains, `limit` bytes at most. How many chains that are.
    fn open_window(&mut self, limit: u32, count: u16) -> u16 {
        self.window.clear();
        let (mut left, mut chains) = (limit, 0u16);
        for held in self.held.iter().take(count.into()) {
            let len = held.room.min(left);
            if len == 0 || self.window.len().saturating_add(held.pieces.len()) > MAX_PIECES {
                break;
            }
            // Cannot fail: the chain has that much room behind the header.
            let _ = chain::cut(&held.pieces, HEADER_LEN, len as usize, &mut self.window);
            left = left.saturating_sub(len);
            chains = chains.saturating_add(1);
        }
        chains
    }

    /// Gives the guest the `len` bytes in the window, each chain with a header like `header`. How many chains that took.
    fn deliver_data(&mut self, place: &mut Place<'_>, header: Header, len: usize) -> Result<u16, RingError> {
        let (mut left, mut used) = (len as u32, 0u16);
        while left > 0 {
            let Some(first) = self.held.front() else { break };
            let part = first.room.min(left);
            self.deliver(place, header, part)?;
            left = left.saturating_sub(part);
            used = used.saturating_add(1);
        }
        Ok(used)
    }

    /// Gives the guest the first held chain: a header like `header`, and `len` bytes that are already there.
    fn deliver(&mut self, place: &mut Place<'_>, header: Header, len: u32) -> Result<(), RingError> {
        let Some(held) = self.held.pop_front() else { return Ok(()) };
        let header = Header { len: len.into(), ..header };
        // Cannot fail: chains without room for it are not held.
        let _ = chain::write_bytes(&held.pieces, header.as_bytes());
        self.returnable = self.returnable.min(self.held.len() as u16);
        place.metrics.rx_packets_count.inc();
        place.queue.complete(place.ram, held.head, len.saturating_add(HEADER_LEN as u32))?;
        self.spare.push(held.pieces);
        Ok(())
    }

    /// Puts the held chains back on the ring. Those that precede a useless one, which was completed, cannot go back and are given to the
    /// guest empty.
    fn release(&mut self, place: &mut Place<'_>) -> Result<(), RingError> {
        let stranded = self.held.len().saturating_sub(self.returnable.into());
        for (index, held) in self.held.drain(..).enumerate() {
            if index < stranded {
                place.queue.complete(place.ram, held.head, 0)?;
            }
            self.spare.push(held.pieces);
        }
        place.queue.put_back(self.returnable);
        self.returnable = 0;
        Ok(())
    }
}
