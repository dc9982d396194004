//! Several pairs of queues (virtio 1.3 §5.1.6.5.6): which taps there are for them, and what a driver says on the control queue.
//!
//! A tap has a queue for each pair, with a descriptor of its own. The kernel spreads frames for the guest over those that are attached, by
//! their flows, so queues of pairs that the driver does not use are detached; to begin with that is all but the first.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::features::MQ;
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;
use crate::sys::tap::Tap;
use crate::virtio::chain::{self, Chain};
use crate::virtio::queue::{RingError, Served, VirtQueue, Visit};

/// VIRTIO_NET_CTRL_MQ.
const CLASS_MQ: u8 = 4;
/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const VQ_PAIRS_SET: u8 = 0;
/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERR: u8 = 1;

/// The queues of a card's tap. All lanes look at it; the first one, under whose lock the control queue is, changes what is in use.
#[derive(Debug)]
pub(super) struct Pairs {
    taps: Vec<Tap>,
    in_use: AtomicUsize,
}

impl Pairs {
    /// Of this tap and the other queues of it. Only the first is in use.
    pub(super) fn new(first: Tap, others: Vec<Tap>) -> io::Result<Self> {
        let mut taps = vec![first];
        taps.extend(others);
        let pairs = Self { in_use: taps.len().into(), taps };
        pairs.put_to_use(1)?;
        Ok(pairs)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.taps.len()
    }

    /// The tap of a pair.
    pub(super) fn tap(&self, pair: usize) -> Option<&Tap> {
        self.taps.get(pair)
    }

    /// How many are in use.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Uses so many from now on. Frames that wait at one that is not used any more are lost.
    pub(super) fn put_to_use(&self, count: usize) -> io::Result<()> {
        if count == self.in_use() {
            return Ok(());
        }
        for (pair, tap) in self.taps.iter().enumerate().skip(1) {
            tap.attach_queue(pair < count)?;
        }
        self.in_use.store(count, Ordering::Relaxed);
        Ok(())
    }

    /// Answers what waits on the control queue. A visit makes one change at most: each of them keeps the host's network busy for a while.
    pub(super) fn control(
        &self,
        accepted: u64,
        queue: &mut VirtQueue,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
    ) -> Result<Visit, RingError> {
        let mut changed = false;
        let visit = queue.serve(ram, irq, |chain| {
            if changed {
                return Served::PutBack;
            }
            let before = self.in_use();
            let ack = self.command(accepted, chain);
            changed = before != self.in_use();
            // The answer is the one byte that a device writes; a driver without room for it hears nothing.
            Served::Done { written: chain::write_bytes(chain.writable(), &[ack]).is_some().into() }
        })?;
        Ok(if changed { Visit::More } else { visit })
    }

    fn command(&self, accepted: u64, chain: &Chain) -> u8 {
        let mut command = [0; 4];
        let set = match chain::read_bytes(chain.readable(), &mut command) {
            Some(()) => match command {
                [CLASS_MQ, VQ_PAIRS_SET, low, high] if accepted & MQ != 0 => Some(u16::from_le_bytes([low, high])),
                _ => None,
            },
            None => None,
        };
        let wanted = set.map(usize::from).filter(|count| (1..=self.count()).contains(count));
        let Some(wanted) = wanted else {
            crate::guest_warn!("a control command that the card does not know: {command:02x?}");
            return ERR;
        };
        match self.put_to_use(wanted) {
            Ok(()) => OK,
            Err(error) => {
                crate::guest_warn!("{wanted} pairs of queues cannot be put to use: {error}");
                ERR
            }
        }
    }
}
