//! From the guest's transmit buffers to the tap (virtio 1.3 §5.1.6.2): one system call a frame, no copy but of the header.

use std::io;
use std::time::Instant;

use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, IntoBytes};

use super::header::Header;
use super::rx::Place;
use super::{ETHERNET_LEN, MAX_BYTES_PER_VISIT, MAX_FRAME_LEN, MAX_FRAMES_PER_VISIT};
use crate::mmds::Checksum;
use crate::sys::iovec::GuestIoVec;
use crate::sys::tap::HEADER_LEN;
use crate::virtio::chain::{self, Chain};
use crate::virtio::queue::{RingError, Visit};

const MAC_LEN: usize = 6;
/// Header, destination and source.
const START_LEN: usize = HEADER_LEN + 2 * MAC_LEN;

/// The sending half of a card.
#[derive(Debug, Default)]
pub(super) struct Tx {
    chain: Chain,
    accepted: u64,
    /// The card's own address, if it has one.
    mac: Option<[u8; MAC_LEN]>,
    window: Vec<GuestIoVec>,
    /// Where the frame at hand says that it comes from.
    source: Option<[u8; MAC_LEN]>,
    /// Frames written to the tap in this visit.
    written: u32,
}

impl Tx {
    /// For a driver that accepted these features.
    pub(super) fn new(accepted: u64, mac: Option<[u8; MAC_LEN]>) -> Self {
        Self { accepted, mac, ..Self::default() }
    }

    /// Sends what waits on the ring, until it is empty or the visit has lasted long enough.
    pub(super) fn visit(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        if place.limiter.is_blocked() {
            // The limiter's timer brings us back.
            return Ok(Visit::Idle);
        }
        place.metrics.tx_count.inc();
        place.queue.disarm(place.ram)?;
        let begun = Instant::now();
        self.written = 0;
        let outcome = self.send_waiting(place);
        if self.written > 0 {
            place.metrics.tap_write_agg.record_batch(begun.elapsed(), self.written);
        }
        // Also after an error: frames may have been completed before it.
        place.queue.notify(place.ram, place.irq)?;
        if let Ok(Visit::More) = outcome {
            place.metrics.tx_remaining_reqs_count.inc();
        }
        outcome
    }

    fn send_waiting(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        let mut bytes = 0usize;
        for turn in 0..MAX_FRAMES_PER_VISIT {
            if !place.queue.pop(place.ram, &mut self.chain)? {
                if place.queue.arm(place.ram)? {
                    continue;
                }
                if turn == 0 {
                    place.metrics.no_tx_avail_buffer.inc();
                }
                return Ok(Visit::Idle);
            }
            let frame_len = self.chain.readable_len().saturating_sub(HEADER_LEN);
            // No more than the largest frame, so that a chain of gigabytes, which is dropped, does not silence the card for a year.
            if !place.limiter.take(frame_len.min(MAX_FRAME_LEN) as u64) {
                place.queue.put_back(1);
                place.metrics.tx_rate_limiter_throttled.inc();
                return Ok(Visit::Idle);
            }
            match self.judge(frame_len) {
                Some(header) => {
                    if self.divert(place, &header, frame_len) {
                        // It does not use the network.
                        place.limiter.give_back(frame_len as u64);
                    } else {
                        self.write(place, header, frame_len);
                    }
                    bytes = bytes.saturating_add(frame_len);
                }
                None => {
                    place.metrics.tx_malformed_frames.inc();
                    place.metrics.tx_fails.inc();
                    crate::guest_warn!("a malformed frame of {frame_len} bytes was dropped");
                }
            }
            place.queue.complete(place.ram, self.chain.head(), 0)?;
            if bytes > MAX_BYTES_PER_VISIT {
                break;
            }
        }
        Ok(Visit::More)
    }

    /// Looks at what is in `self.chain`: its header, and in `self.window` the frame behind an empty piece for the header. `None` if it is
    /// no frame.
    fn judge(&mut self, frame_len: usize) -> Option<Header> {
        let readable = self.chain.readable();
        let len = self.chain.readable_len();
        if !(HEADER_LEN + ETHERNET_LEN..=MAX_FRAME_LEN).contains(&len) || !self.chain.writable().is_empty() {
            return None;
        }
        let mut start = [0; START_LEN];
        chain::read_bytes(readable, &mut start)?;
        let (header, _) = Header::read_from_prefix(&start).ok()?;
        let header = header.judge(frame_len, self.accepted)?;
        self.source = start.last_chunk().copied();
        self.window.clear();
        // Room for the header, which follows once it lies where it is to stay.
        self.window.push(GuestIoVec::empty());
        chain::cut(readable, HEADER_LEN, frame_len, &mut self.window)?;
        Some(header)
    }

    /// Gives a judged frame to the metadata service if it is for it.
    fn divert(&mut self, place: &mut Place<'_>, header: &Header, frame_len: usize) -> bool {
        let Some(port) = place.port else { return false };
        let checksum = if header.needs_checksum() { Checksum::Partial } else { Checksum::Whole };
        // The first piece is for the header.
        port.lock().take(self.window.get(1..).unwrap_or_default(), frame_len, checksum)
    }

    /// Writes a judged frame to the tap.
    fn write(&mut self, place: &Place<'_>, mut header: Header, frame_len: usize) {
        let metrics = place.metrics;
        if self.mac.is_some() && self.mac != self.source {
            metrics.tx_spoofed_mac_count.inc();
        }
        // The kernel gets the copy that was judged: the guest can still write its own.
        if let Some(first) = self.window.first_mut() {
            *first = GuestIoVec::new(&VolatileSlice::from(header.as_mut_bytes()));
        }
        self.written = self.written.saturating_add(1);
        loop {
            match place.tap.write(&self.window) {
                Ok(()) => {
                    metrics.tx_packets_count.inc();
                    metrics.tx_bytes_count.add(frame_len as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Down, deleted, out of memory, or a frame the kernel does not like: as on a cable, it is lost.
                Err(error) => {
                    metrics.tap_write_fails.inc();
                    metrics.tx_fails.inc();
                    crate::guest_warn!("{}: a frame of {frame_len} bytes is lost: {error}", place.tap.name());
                }
            }
            return;
        }
    }
}
