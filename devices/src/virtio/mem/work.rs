//! Plugging and unplugging, slot by slot, so that no bite takes long.

use std::io;
use std::ops::Range;
use std::time::Instant;

use super::blocks::Blocks;
use super::metrics::MemMetrics;
use super::request::{Kind, Reply};
use super::{Backing, Shape};
use crate::virtio::state::BadState;

/// Most memory given back to the host at a time: ten milliseconds' work or so if all of it is in use.
const BITE_BYTES: u64 = 128 << 20;

/// A request in the making.
#[derive(Debug)]
pub(super) struct Job {
    /// Head of its chain.
    pub(super) head: u16,
    pub(super) reply: Reply,
    pub(super) kind: Kind,
    pub(super) started: Instant,
    /// Blocks to plug or unplug: those of the request, or all.
    whole: Range<u64>,
    /// The first of them that is still to be looked at.
    next: u64,
    /// Blocks changed so far.
    pub(super) changed: u64,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
    /// The host refused, and what was done is undone.
    Failed,
}

impl Job {
    pub(super) fn new(head: u16, reply: Reply, kind: Kind, whole: Range<u64>) -> Self {
        let next = whole.start;
        Self { head, reply, kind, started: Instant::now(), whole, next, changed: 0 }
    }
}

/// The region's blocks and memory.
pub(super) struct Region {
    pub(super) shape: Shape,
    pub(super) blocks: Blocks,
    backing: Box<dyn Backing>,
}

impl Region {
    pub(super) fn new(shape: Shape, backing: Box<dyn Backing>) -> Self {
        let count = |len: u64| len.checked_div(shape.block_len).unwrap_or(0);
        Self { shape, blocks: Blocks::new(count(shape.len), count(shape.slot_len)), backing }
    }

    /// Bytes of so many blocks.
    pub(super) fn bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.shape.block_len)
    }

    /// Does the next part of a job: what lies in one slot, and not too much of it.
    pub(super) fn bite(&mut self, job: &mut Job, metrics: &MemMetrics) -> Progress {
        let most = BITE_BYTES.checked_div(self.shape.block_len).unwrap_or(1).max(1);
        let (slot, part) = self.blocks.first_slot(&(job.next..job.whole.end.min(job.next.saturating_add(most))));
        let done = match job.kind {
            Kind::Plug => self.plug(slot, part.clone(), metrics),
            _ => self.unplug(slot, part.clone(), metrics),
        };
        match done {
            Ok(changed) => {
                job.changed = job.changed.saturating_add(changed);
                job.next = part.end;
                if job.next >= job.whole.end { Progress::Done } else { Progress::More }
            }
            Err(error) => {
                crate::guest_warn!("memory: {:?} of blocks {part:?} failed: {error}", job.kind);
                self.undo(job, metrics);
                Progress::Failed
            }
        }
    }

    /// Plugs the blocks of a saved state in a region without any.
    pub(super) fn restore(&mut self, words: &[u64], metrics: &MemMetrics) -> Result<(), BadState> {
        let wrong = || BadState::Impossible(format!("the plugged blocks are not {} blocks", self.blocks.count()));
        for mut run in self.blocks.runs(words).ok_or_else(wrong)? {
            while !run.is_empty() {
                let (slot, part) = self.blocks.first_slot(&run);
                run.start = part.end;
                self.plug(slot, part, metrics)
                    .map_err(|e| BadState::Impossible(format!("slot {slot} cannot be plugged here: {e}")))?;
            }
        }
        Ok(())
    }

    fn plug(&mut self, slot: usize, part: Range<u64>, metrics: &MemMetrics) -> io::Result<u64> {
        if self.blocks.plugged_in(slot) == 0 {
            self.backing.open(slot)?;
            metrics.reachable_bytes.set(metrics.reachable_bytes.get().saturating_add(self.shape.slot_len));
        }
        let count = part.end.saturating_sub(part.start);
        self.blocks.set(part, true);
        Ok(count)
    }

    /// Blocks that are unplugged already are left alone.
    fn unplug(&mut self, slot: usize, part: Range<u64>, metrics: &MemMetrics) -> io::Result<u64> {
        let leaving = self.blocks.plugged_of(part.clone());
        if leaving == 0 {
            return Ok(0);
        }
        if leaving == self.blocks.plugged_in(slot) {
            // Taken away first, so that nobody fills the pages again while they are given back; and all of them are, because the guest
            // could use the slot's unplugged blocks until now.
            self.backing.close(slot)?;
            metrics.reachable_bytes.set(metrics.reachable_bytes.get().saturating_sub(self.shape.slot_len));
            let offset = self.shape.slot_len.saturating_mul(slot as u64);
            if let Err(error) = self.backing.discard(offset, self.shape.slot_len) {
                // Out of reach they do no harm but to the host's free memory.
                metrics.unplug_discard_fails.inc();
                crate::guest_warn!("memory: the host does not take back slot {slot}: {error}");
            }
        } else {
            let len = self.bytes(part.end.saturating_sub(part.start));
            self.backing.discard(self.bytes(part.start), len).inspect_err(|_| metrics.unplug_discard_fails.inc())?;
        }
        self.blocks.set(part, false);
        Ok(leaving)
    }

    /// Brings the blocks of a job that failed back to what they were, as far as the host lets us. What they held is gone if they were to be
    /// unplugged, which is what the driver has to expect of such blocks.
    fn undo(&mut self, job: &mut Job, metrics: &MemMetrics) {
        let mut rest = job.whole.start..job.next;
        // Nobody knows any more which of all blocks were plugged; that some are not any more the driver can read from `plugged_size`.
        while !rest.is_empty() && job.kind != Kind::UnplugAll {
            let (slot, part) = self.blocks.first_slot(&rest);
            rest.start = part.end;
            let undone = match job.kind {
                Kind::Plug => self.unplug(slot, part, metrics),
                _ => self.plug(slot, part, metrics),
            };
            if let Err(error) = undone {
                crate::guest_warn!("memory: slot {slot} stays changed after a failure: {error}");
            }
        }
        if job.kind != Kind::UnplugAll {
            job.changed = 0;
        }
    }
}
