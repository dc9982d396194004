//! Which blocks are plugged, and how many of each slot.

use std::ops::Range;

/// What a range of blocks is, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Plugged,
    Unplugged,
    Mixed,
}

/// One bit for each block.
#[derive(Debug)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: u64,
    per_slot: u64,
    plugged: u64,
    /// Plugged blocks of each slot.
    in_slot: Vec<u64>,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl Blocks {
    /// `count` unplugged blocks, `per_slot` (not 0) to a slot.
    pub(super) fn new(count: u64, per_slot: u64) -> Self {
        let len = |n: u64| usize::try_from(n).unwrap_or(0);
        Self {
            words: vec![0; len(count.div_ceil(WORD_BITS))],
            count,
            per_slot: per_slot.max(1),
            plugged: 0,
            in_slot: vec![0; len(count.div_ceil(per_slot.max(1)))],
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// A bit for each block that is plugged, the first one lowest.
    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The runs of plugged blocks in such words; `None` if there are more or fewer words than blocks need, or bits behind the last block.
    pub(super) fn runs(&self, words: &[u64]) -> Option<Vec<Range<u64>>> {
        if words.len() != self.words.len() {
            return None;
        }
        let all = (0u64..).zip(words).flat_map(|(at, word)| {
            let first = at.saturating_mul(WORD_BITS);
            (0..WORD_BITS).filter(move |bit| word & (1 << bit) != 0).map(move |bit| first.saturating_add(bit))
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in all {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end = block.saturating_add(1),
                _ => runs.push(block..block.saturating_add(1)),
            }
        }
        runs.last().is_none_or(|run| run.end <= self.count).then_some(runs)
    }

    /// How many of them are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged
    }

    /// How many of slot `slot` are plugged.
    pub(super) fn plugged_in(&self, slot: usize) -> u64 {
        self.in_slot.get(slot).copied().unwrap_or(0)
    }

    /// The part of `range` that lies in the slot of its first block, and that slot.
    pub(super) fn first_slot(&self, range: &Range<u64>) -> (usize, Range<u64>) {
        let slot = range.start.checked_div(self.per_slot).unwrap_or(0);
        let end = slot.saturating_add(1).saturating_mul(self.per_slot);
        (usize::try_from(slot).unwrap_or(usize::MAX), range.start..range.end.min(end))
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = usize::try_from(block / WORD_BITS).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & (1 << (block % WORD_BITS)) != 0)
    }

    /// How many blocks of `range` are plugged.
    pub(super) fn plugged_of(&self, range: Range<u64>) -> u64 {
        range.filter(|block| self.is_plugged(*block)).count() as u64
    }

    /// What the blocks of `range` are. An empty range is unplugged.
    pub(super) fn state(&self, range: Range<u64>) -> State {
        let (mut plugged, mut unplugged) = (false, false);
        for block in range {
            let is = self.is_plugged(block);
            plugged |= is;
            unplugged |= !is;
            if plugged && unplugged {
                return State::Mixed;
            }
        }
        if plugged { State::Plugged } else { State::Unplugged }
    }

    /// Notes that all blocks of `range` are plugged, or none of them.
    pub(super) fn set(&mut self, range: Range<u64>, plug: bool) {
        for block in range.start..range.end.min(self.count) {
            let at = usize::try_from(block / WORD_BITS).unwrap_or(usize::MAX);
            let slot = usize::try_from(block.checked_div(self.per_slot).unwrap_or(0)).unwrap_or(usize::MAX);
            let (Some(word), Some(in_slot)) = (self.words.get_mut(at), self.in_slot.get_mut(slot)) else { return };
            let bit = 1 << (block % WORD_BITS);
            match (*word & bit != 0, plug) {
                (false, true) => {
                    *word |= bit;
                    *in_slot = in_slot.saturating_add(1);
                    self.plugged = self.plugged.saturating_add(1);
                }
                (true, false) => {
                    *word &= !bit;
                    *in_slot = in_slot.saturating_sub(1);
                    self.plugged = self.plugged.saturating_sub(1);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model that cannot be wrong.
        #[test]
        fn as_a_list_of_flags(
            count in 1u64..300, per_slot in 1u64..70,
            steps in proptest::collection::vec((0u64..320, 0u64..80, any::<bool>()), 0..40),
        ) {
            let mut blocks = Blocks::new(count, per_slot);
            let mut model = vec![false; count as usize];
            for (start, len, plug) in steps {
                blocks.set(start..start + len, plug);
                model.iter_mut().skip(start as usize).take(len as usize).for_each(|flag| *flag = plug);
                prop_assert_eq!(blocks.plugged(), model.iter().filter(|flag| **flag).count() as u64);
                for (slot, flags) in model.chunks(per_slot as usize).enumerate() {
                    prop_assert_eq!(blocks.plugged_in(slot), flags.iter().filter(|flag| **flag).count() as u64);
                }
                let range = start.min(count)..(start + len).min(count);
                let part = &model[range.start as usize..range.end as usize];
                let expected = match (part.contains(&true), part.contains(&false)) {
                    (true, true) => State::Mixed,
                    (true, false) => State::Plugged,
                    (false, _) => State::Unplugged,
                };
                prop_assert_eq!(blocks.plugged_of(range.clone()), part.iter().filter(|flag| **flag).count() as u64);
                prop_assert_eq!(blocks.state(range), expected);
            }
        }
    }

    #[test]
    fn ranges_are_cut_at_slots() {
        let blocks = Blocks::new(10, 4);
        assert_eq!(blocks.first_slot(&(0..10)), (0, 0..4));
        assert_eq!(blocks.first_slot(&(3..5)), (0, 3..4));
        assert_eq!(blocks.first_slot(&(5..7)), (1, 5..7));
        assert_eq!(blocks.first_slot(&(8..10)), (2, 8..10));
    }
}
