//! From the guest's transmit buffers to the tap (virtio 1.3 §5.1.6.2): one system call a frame, no copy but of the header.

use std::io;

use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, IntoBytes};

use super::header::Header;
use super::rx::Place;
use super::{ETHERNET_LEN, MAX_BYTES_PER_VISIT, MAX_FRAME_LEN, MAX_FRAMES_PER_VISIT};
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
}

impl Tx {
    /// For a driver that accepted these features.
    pub(super) fn new(accepted: u64, mac: Option<[u8; MAC_LEN]>) -> Self {
        Self { accepted, mac, ..Self::default() }
    }

    /// Sends what waits on the ring, until it is empty or the visit has lasted long enough.
    pub(super) fn visit(&mut self, place: &mut Place<'_>) -> Result<Visit, RingError> {
        place.metrics.tx_count.inc();
        place.queue.disarm(place.ram)?;
        let outcome = self.send_waiting(place);
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
            let sent = self.send(place);
            place.queue.complete(place.ram, self.chain.head(), 0)?;
            bytes = bytes.saturating_add(sent);
            if bytes > MAX_BYTES_PER_VISIT {
                break;
            }
        }
        Ok(Visit::More)
    }

    /// Sends the frame in `self.chain` or drops it. Its length.
    fn send(&mut self, place: &Place<'_>) -> usize {
        let metrics = place.metrics;
        let readable = self.chain.readable();
        let len = self.chain.readable_len();
        let frame_len = len.saturating_sub(HEADER_LEN);
        let mut start = [0; START_LEN];
        let header = ((HEADER_LEN + ETHERNET_LEN..=MAX_FRAME_LEN).contains(&len) && self.chain.writable().is_empty())
            .then(|| chain::read_bytes(readable, &mut start))
            .flatten()
            .and_then(|()| Header::read_from_prefix(&start).ok())
            .and_then(|(header, _)| header.judge(frame_len, self.accepted));
        self.window.clear();
        // Room for the header, which follows once it lies where it is to stay.
        self.window.push(GuestIoVec::empty());
        let cut = chain::cut(readable, HEADER_LEN, frame_len, &mut self.window);
        let (Some(mut header), Some(())) = (header, cut) else {
            metrics.tx_malformed_frames.inc();
            metrics.tx_fails.inc();
            crate::guest_warn!("a malformed frame of {frame_len} bytes was dropped");
            return 0;
        };
        if self.mac.is_some_and(|mac| start.last_chunk() != Some(&mac)) {
            metrics.tx_spoofed_mac_count.inc();
        }
        // The kernel gets the copy that was judged: the guest can still write its own.
        if let Some(first) = self.window.first_mut() {
            *first = GuestIoVec::new(&VolatileSlice::from(header.as_mut_bytes()));
        }
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
            return frame_len;
        }
    }
}
