//! From the guest: packets from its transmit buffers (virtio 1.3 §5.10.6.4).
//!
//! Data goes straight from guest memory to the host's socket. Packets of one connection that follow each other are written by one call,
//! for which their buffers are kept until it is done. Chains are completed in the order in which they came.

use zerocopy::{FromZeros, IntoBytes};

use super::packet::{HEADER_LEN, Header, Ports, op};
use super::rx::Place;
use super::seats::Ticket;
use super::{MAX_BYTES_PER_VISIT, MAX_PACKETS_PER_VISIT};
use crate::sys::iovec::GuestIoVec;
use crate::sys::unix_stream::MAX_PIECES;
use crate::virtio::chain::{self, Chain};
use crate::virtio::queue::RingError;

/// The sending half of the device.
#[derive(Debug, Default)]
pub(super) struct Tx {
    chain: Chain,
    /// Whose data is gathered.
    batch: Option<(Ticket, Ports)>,
    pieces: Vec<GuestIoVec>,
    /// The chains that the pieces belong to.
    heads: Vec<u16>,
    /// Packets wait: the last visit was long enough, or the guest does not receive the answers.
    unfinished: bool,
}

impl Tx {
    /// Whether packets wait for which the driver will not ring.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Looks at what waits on the ring, until it is empty, the visit has lasted long enough, or too many answers wait.
    pub(super) fn visit(&mut self, place: &mut Place<'_>) -> Result<(), RingError> {
        place.queue.disarm(place.ram)?;
        let outcome = self.hear_waiting(place);
        // Also after an error: what is gathered is whole, and packets may have been completed before.
        let flushed = self.flush(place);
        place.queue.notify(place.ram, place.irq)?;
        flushed?;
        outcome
    }

    fn hear_waiting(&mut self, place: &mut Place<'_>) -> Result<(), RingError> {
        self.unfinished = true;
        let mut bytes = 0usize;
        for _ in 0..MAX_PACKETS_PER_VISIT {
            if place.muxer.is_clogged() {
                // §5.10.6.1: what cannot be answered must wait. The receive doorbell continues it.
                place.metrics.tx_stalls.inc();
                break;
            }
            if !place.queue.pop(place.ram, &mut self.chain)? {
                self.flush(place)?;
                if place.queue.arm(place.ram)? {
                    continue;
                }
                self.unfinished = false;
                break;
            }
            bytes = bytes.saturating_add(self.hear(place)?);
            if bytes > MAX_BYTES_PER_VISIT {
                break;
            }
        }
        Ok(())
    }

    /// Looks at the packet in `self.chain`. How much data it brings.
    fn hear(&mut self, place: &mut Place<'_>) -> Result<usize, RingError> {
        let head = self.chain.head();
        let mut header = Header::new_zeroed();
        let whole = self.chain.writable().is_empty()
            && chain::read_bytes(self.chain.readable(), header.as_mut_bytes()).is_some();
        if !whole {
            self.flush(place)?;
            place.metrics.tx_malformed_packets.inc();
            crate::guest_warn!("vsock: a packet without a header was dropped");
            place.queue.complete(place.ram, head, 0)?;
            return Ok(0);
        }
        let len = header.len.get() as usize;
        let is_data = header.op.get() == op::RW;
        if !is_data || self.batch.is_none_or(|(_, ports)| ports != header.ports()) || self.is_full() {
            // What came before must have been passed on before this packet means anything.
            self.flush(place)?;
        }
        if self.chain.readable_len().saturating_sub(HEADER_LEN) < len {
            self.flush(place)?;
            place.muxer.hear_nonsense(&header);
        } else if let Some(ticket) = place.muxer.hear(&header) {
            // Cannot fail: the chain is long enough.
            let _ = chain::cut(self.chain.readable(), HEADER_LEN, len, &mut self.pieces);
            self.batch = Some((ticket, header.ports()));
            self.heads.push(head);
            return Ok(len);
        }
        self.flush(place)?;
        place.queue.complete(place.ram, head, 0)?;
        Ok(0)
    }

    /// Whether another chain could have more pieces than one call takes.
    fn is_full(&self) -> bool {
        self.pieces.len().saturating_add(self.chain.readable().len()) > MAX_PIECES
    }

    /// Passes on what is gathered.
    fn flush(&mut self, place: &mut Place<'_>) -> Result<(), RingError> {
        if let Some((ticket, _)) = self.batch.take() {
            place.muxer.pass_on(ticket, &self.pieces);
        }
        self.pieces.clear();
        for head in self.heads.drain(..) {
            place.queue.complete(place.ram, head, 0)?;
        }
        Ok(())
    }
}
