//! From the tap into the guest's receive buffers (virtio 1.3 §5.1.6.3 to §5.1.6.4).
//!
//! The kernel writes each frame straight into guest memory. How long a frame is shows only when it is read, so buffers for the largest
//! one are taken from the ring beforehand. What a frame leaves over stays here for the next one.

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;

use super::header::NUM_BUFFERS;
use super::metrics::NetMetrics;
use super::port::{Port, SharedPort};
use super::{MAX_BYTES_PER_VISIT, MAX_FRAME_LEN, MAX_FRAMES_PER_VISIT};
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;
use crate::rate_limit::RateLimiter;
use crate::sys::iovec::GuestIoVec;
use crate::sys::tap::{HEADER_LEN, MAX_PIECES, Tap};
use crate::virtio::chain::Chain;
use crate::virtio::queue::{RingError, VirtQueue, Visit};

/// One more piece than the guest's is needed now and then.
const MAX_HELD_PIECES: usize = MAX_PIECES - 1;

/// A chain taken from the ring whose buffers are still empty.
#[derive(Debug)]
struct Held {
    head: u16,
    len: u32,
    pieces: usize,
}

/// What the ring had.
#[derive(Debug, PartialEq, Eq)]
enum Stock {
    /// A frame can be read.
    Enough,
    /// The ring is empty.
    Short,
    /// Nothing but useless chains for too long.
    Later,
}

/// What the tap had.
#[derive(Debug)]
enum Arrival {
    /// Header and frame of this length are in the held buffers.
    Frame(usize),
    /// A frame too large for the held buffers; it is lost.
    TooLarge,
    /// Nothing, or nothing that could be read.
    Nothing,
}

/// The receiving half of a card.
#[derive(Debug, Default)]
pub(super) struct Rx {
    chain: Chain,
    held: VecDeque<Held>,
    /// The buffers of all held chains.
    pieces: VecDeque<GuestIoVec>,
    /// Their length.
    held_bytes: u64,
    /// How many of the held chains, from the last one back, follow each other on the ring.
    returnable: u16,
    mergeable: bool,
    /// Bytes to hold before a frame is read.
    wanted: u64,
    /// The most the ring ever had for one frame. A ring too small for the largest frame shall still get the small ones.
    roomiest: u64,
    /// The ring had too little, and its doorbell is awaited.
    starved: bool,
    /// The doorbell is asked for.
    armed: bool,
    window: Vec<GuestIoVec>,
    done: Vec<(u16, u32)>,
}

/// What a visit works with.
pub(super) struct Place<'a> {
    pub(super) tap: &'a Tap,
    pub(super) ram: &'a GuestRam,
    pub(super) irq: &'a dyn VirtioIrq,
    pub(super) queue: &'a mut VirtQueue,
    pub(super) metrics: &'a NetMetrics,
    /// Of this direction.
    pub(super) limiter: &'a mut RateLimiter,
    /// The metadata service, if it is behind this card.
    pub(super) port: Option<&'a SharedPort>,
}

impl Rx {
    /// For a new driver: whether a frame may lie in several chains, and how many bytes the largest frame that it is usually sent takes.
    pub(super) fn new(mergeable: bool, usual_len: usize) -> Self {
        let wanted = if mergeable { usual_len as u64 } else { 1 };
        Self { mergeable, wanted, armed: true, ..Self::default() }
    }

    /// The ring was too small for a frame at the last visit.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// How many chains and pieces are held.
    #[cfg(test)]
    pub(super) fn holds(&self) -> (usize, usize) {
        (self.held.len(), self.pieces.len())
    }

    /// Brings frames in until the tap or the ring is empty, or the visit has lasted long enough.
    pub(super) fn visit(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        if place.limiter.is_blocked() {
            // The limiter's timer brings us back.
            return Ok(Visit::Idle);
        }
        if self.starved && !place.queue.has_available(place.ram)? {
            // Arriving frames must not cost more than this while the guest offers nothing (CVE-2020-16843).
            return Ok(Visit::Idle);
        }
        self.starved = false;
        if std::mem::take(&mut self.armed) {
            place.queue.disarm(place.ram)?;
        }
        let outcome = self.receive(place);
        // Also after an error: frames may have been completed before it.
        place.queue.notify(place.ram, place.irq)?;
        outcome
    }

    fn receive(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        let mut bytes = 0usize;
        for _ in 0..MAX_FRAMES_PER_VISIT {
            match self.gather(place)? {
                Stock::Enough => {}
                Stock::Later => return Ok(Visit::More),
                Stock::Short => {
                    self.armed = true;
                    if place.queue.arm(place.ram)? {
                        continue;
                    }
                    self.starved = true;
                    return Ok(Visit::Idle);
                }
            }
            // How long a frame is shows only when it is in the guest's memory, so its bytes are paid for afterwards.
            if !place.limiter.allow(1) {
                place.metrics.rx_rate_limiter_throttled.inc();
                return Ok(Visit::Idle);
            }
            match self.next(place) {
                Arrival::Nothing => return Ok(Visit::Idle),
                Arrival::TooLarge => {
                    place.limiter.charge(0);
                    place.metrics.rx_fails.inc();
                    if self.mergeable {
                        // The interface has a larger MTU than it was thought to have.
                        self.wanted = MAX_FRAME_LEN as u64;
                    }
                    crate::guest_warn!("a frame is larger than the guest's receive buffers and lost");
                }
                Arrival::Frame(len) => {
                    let frame_len = len.saturating_sub(HEADER_LEN) as u64;
                    place.limiter.charge(frame_len);
                    place.metrics.rx_packets_count.inc();
                    place.metrics.rx_bytes_count.add(frame_len);
                    self.deliver(place, len)?;
                    bytes = bytes.saturating_add(len);
                    if bytes > MAX_BYTES_PER_VISIT {
                        break;
                    }
                }
            }
        }
        Ok(Visit::More)
    }

    /// Takes chains from the ring until the largest usual frame fits.
    fn gather(&mut self, place: &mut Place<'_>) -> Result<Stock, RingError> {
        // A whole ring, and the look that finds it empty.
        let mut budget = place.queue.size().saturating_add(1);
        while self.held.is_empty() || (self.held_bytes < self.wanted && self.pieces.len() < MAX_HELD_PIECES) {
            let Some(left) = budget.checked_sub(1) else { return Ok(Stock::Later) };
            budget = left;
            let bad_before = place.queue.bad_chains();
            let popped = place.queue.pop(place.ram, &mut self.chain)?;
            if place.queue.bad_chains() != bad_before {
                self.returnable = 0;
            }
            if !popped {
                self.roomiest = self.roomiest.max(self.held_bytes);
                // Most drivers have been generous before and will be again: waiting for them loses no frame.
                let never_had_more = self.roomiest < self.wanted && !self.held.is_empty();
                return Ok(if never_had_more { Stock::Enough } else { Stock::Short });
            }
            if (self.chain.writable_len() as usize) < HEADER_LEN || !self.chain.readable().is_empty() {
                crate::guest_warn!("a receive buffer has no room for a header or is not writable");
                place.queue.complete(place.ram, self.chain.head(), 0)?;
                self.returnable = 0;
                continue;
            }
            self.hold();
        }
        self.roomiest = self.roomiest.max(self.held_bytes);
        Ok(Stock::Enough)
    }

    fn hold(&mut self) {
        let before = self.pieces.len();
        self.pieces.extend(self.chain.writable().iter().filter(|piece| !piece.is_empty()));
        let pieces = self.pieces.len().saturating_sub(before);
        let len = self.chain.writable_len();
        self.held.push_back(Held { head: self.chain.head(), len, pieces });
        self.held_bytes = self.held_bytes.saturating_add(len.into());
        self.returnable = self.returnable.saturating_add(1);
    }

    /// The next frame, from the tap or from the metadata service: by turns, if both have some.
    fn next(&mut self, place: &mut Place<'_>) -> Arrival {
        let Some(port) = place.port else { return self.read(place) };
        let mut service = port.lock();
        if service.is_due() {
            return self.fetch(&mut service);
        }
        drop(service);
        let arrival = self.read(place);
        let mut service = port.lock();
        match arrival {
            Arrival::Nothing => self.fetch(&mut service),
            arrival => {
                service.tap_was_first();
                arrival
            }
        }
    }

    /// Copies one frame of the metadata service into the held buffers.
    fn fetch(&mut self, port: &mut Port) -> Arrival {
        let Some(frame) = port.front() else { return Arrival::Nothing };
        self.window.clear();
        self.window.extend(self.pieces.iter().take(MAX_HELD_PIECES));
        let len = frame.len().saturating_add(HEADER_LEN);
        let fits = len <= GuestIoVec::total(&self.window);
        if fits {
            // Whole, with its checksum: nothing for a header to say.
            overwrite(&self.window, 0, &[0; HEADER_LEN]);
            overwrite(&self.window, HEADER_LEN, frame);
        }
        port.pop(fits);
        if fits { Arrival::Frame(len) } else { Arrival::TooLarge }
    }

    /// Reads one frame of the tap into the held buffers.
    fn read(&mut self, place: &Place<'_>) -> Arrival {
        self.window.clear();
        self.window.extend(self.pieces.iter().take(MAX_HELD_PIECES));
        let room = GuestIoVec::total(&self.window);
        // A frame that fits exactly and one that was cut off look alike, but for one byte more.
        let mut excess = [0u8; 1];
        if room < MAX_FRAME_LEN {
            self.window.push(GuestIoVec::new(&VolatileSlice::from(&mut excess[..])));
        }
        loop {
            match place.tap.read(&self.window) {
                Ok(len) if len > room => return Arrival::TooLarge,
                Ok(len) if len >= HEADER_LEN => {
                    place.metrics.rx_count.inc();
                    return Arrival::Frame(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Arrival::Nothing,
                // Interface down or deleted. If it comes up again, its next frame brings a new event.
                Ok(_) | Err(_) => {
                    place.metrics.tap_read_fails.inc();
                    return Arrival::Nothing;
                }
            }
        }
    }

    /// Gives the guest the `len` bytes at the start of the held buffers.
    fn deliver(&mut self, place: &mut Place<'_>, len: usize) -> Result<(), RingError> {
        self.done.clear();
        let mut left = len as u64;
        let mut pieces = 0usize;
        for chain in &self.held {
            let written = u64::from(chain.len).min(left) as u32;
            self.done.push((chain.head, written));
            pieces = pieces.saturating_add(chain.pieces);
            self.held_bytes = self.held_bytes.saturating_sub(chain.len.into());
            left = left.saturating_sub(written.into());
            if left == 0 {
                break;
            }
        }
        // The tap leaves `num_buffers` as it was.
        let num_buffers = (self.done.len() as u16).to_le_bytes();
        overwrite(&self.window, NUM_BUFFERS, &num_buffers);
        self.pieces.drain(..pieces.min(self.pieces.len()));
        self.held.drain(..self.done.len().min(self.held.len()));
        self.returnable = self.returnable.min(self.held.len() as u16);
        place.queue.complete_together(place.ram, &self.done)
    }

    /// Gives up the held chains: back to the ring, where the next visit finds them. Those that precede a malformed one cannot go back
    /// and are given to the guest empty.
    pub(super) fn release(&mut self, place: &mut Place<'_>) -> Result<(), RingError> {
        let stranded = self.held.len().saturating_sub(self.returnable.into());
        for chain in self.held.drain(..stranded.min(self.held.len())) {
            place.queue.complete(place.ram, chain.head, 0)?;
        }
        place.queue.put_back(self.returnable);
        self.held.clear();
        self.pieces.clear();
        self.held_bytes = 0;
        self.returnable = 0;
        self.starved = false;
        place.queue.notify(place.ram, place.irq)
    }
}

/// Writes `bytes` `skip` bytes into `pieces`, as far as they reach.
fn overwrite(pieces: &[GuestIoVec], mut skip: usize, mut bytes: &[u8]) {
    for piece in pieces {
        let (before, rest) = piece.split_at(skip);
        skip = skip.saturating_sub(before.len());
        let written = rest.copy_from(bytes);
        bytes = bytes.get(written..).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
    }
}
