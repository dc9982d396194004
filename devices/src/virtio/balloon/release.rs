//! One request to give memory back, done in steps that are short enough to be interrupted after each.

use std::io;

use super::PAGE_LEN;
use super::pfns::{self, PFN_LEN, Span};
use super::regions::{self, Regions};
use crate::ram::GuestRam;
use crate::virtio::chain::Chain;

/// How a request names memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Named {
    /// By page numbers, in what the device reads.
    #[default]
    ByNumber,
    /// As buffers the device may write.
    AsBuffers,
}

/// A request, and how far it is done. Kept for its room when it is finished.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// The request.
    pub chain: Chain,
    /// Not finished.
    busy: bool,
    named: Named,
    /// Page numbers read so far.
    read: usize,
    /// Ranges still to be given back, the next one last.
    spans: Vec<Span>,
    /// Of the range at hand.
    given: u64,
    kept: u64,
    error: Option<io::Error>,
    room: Vec<crate::sys::iovec::GuestIoVec>,
}

/// What a step came to.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is more of the range at hand.
    Going,
    /// Page numbers were read, of which so many name no page of their own.
    Numbers {
        /// Pages named again, or by half a number.
        idle: u64,
    },
    /// A range is done with.
    Range(Outcome),
    /// All of it is done.
    Finished,
}

/// What became of a range.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Bytes that went back to the host.
    pub given: u64,
    /// Bytes that stay.
    pub kept: u64,
    /// Why, if the host is to blame.
    pub error: Option<io::Error>,
}

impl Release {
    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Starts the request that was put into [`Self::chain`].
    pub(super) fn begin(&mut self, named: Named, regions: &Regions) {
        self.forget();
        self.busy = true;
        self.named = named;
        if named == Named::AsBuffers {
            // A buffer of a chain lies in guest memory, so it is always found.
            self.spans.extend(self.chain.writable().iter().rev().filter_map(|piece| regions.locate(piece)));
        }
    }

    /// Drops the request.
    pub(super) fn forget(&mut self) {
        self.busy = false;
        self.read = 0;
        self.spans.clear();
        (self.given, self.kept, self.error) = (0, 0, None);
    }

    /// Leaves the memory it names alone.
    pub(super) fn drop_ranges(&mut self) {
        self.spans.clear();
    }

    /// Does a little of it.
    pub(super) fn step(&mut self, ram: &GuestRam, regions: &Regions) -> Progress {
        let Some(span) = self.spans.last_mut() else { return self.next_batch() };
        if span.len > 0 {
            let step = regions.step(*span);
            let mut given = 0;
            if let Some(give) = step.give {
                match regions::give_back(ram, give) {
                    Ok(()) => given = give.len,
                    Err(error) => self.error = Some(error),
                }
            }
            self.given = self.given.saturating_add(given);
            self.kept = self.kept.saturating_add(step.len.saturating_sub(given));
            *span = Span { start: span.start.saturating_add(step.len), len: span.len.saturating_sub(step.len) };
            if span.len > 0 {
                return Progress::Going;
            }
        }
        self.spans.pop();
        Progress::Range(Outcome {
            given: std::mem::take(&mut self.given),
            kept: std::mem::take(&mut self.kept),
            error: self.error.take(),
        })
    }

    fn next_batch(&mut self) -> Progress {
        if self.named == Named::ByNumber {
            let skip = self.read.saturating_mul(PFN_LEN);
            let batch = pfns::read_batch(self.chain.readable(), skip, &mut self.room, &mut self.spans);
            if let Some((count @ 1.., again)) = batch {
                self.read = self.read.saturating_add(count);
                self.spans.reverse();
                let all = self.read.saturating_mul(PFN_LEN);
                let left = self.chain.readable_len().saturating_sub(all);
                let ragged = usize::from((1..PFN_LEN).contains(&left));
                return Progress::Numbers { idle: again.saturating_add(ragged) as u64 };
            }
        }
        self.busy = false;
        Progress::Finished
    }
}

impl Outcome {
    /// Pages that stay, as the balloon counts them.
    pub(super) fn kept_pages(&self) -> u64 {
        self.kept.div_ceil(PAGE_LEN)
    }
}
