//! Which pages of guest memory were written since somebody last looked.

use super::{Layout, Run};
use crate::sys::pages::PAGE_LEN;

/// A bit for each page of each part of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirtyMap {
    parts: Vec<DirtyPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct DirtyPart {
    start: u64,
    pages: u64,
    words: Vec<u64>,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl DirtyMap {
    /// Nothing was written.
    pub fn new(layout: &Layout) -> Self {
        let part = |part: &super::Part| {
            let pages = part.len / PAGE_LEN as u64;
            let words = usize::try_from(pages.div_ceil(WORD_BITS)).unwrap_or(0);
            DirtyPart { start: part.start, pages, words: vec![0; words] }
        };
        Self { parts: layout.parts().iter().map(part).collect() }
    }

    /// The pages that `words` has bits for were written, too, the first of which is at guest address `start`. Pages of no part are left out.
    pub fn add(&mut self, start: u64, words: &[u64]) {
        let inside = |part: &&mut DirtyPart| part.start <= start && start < part.start + part.pages * PAGE_LEN as u64;
        let Some(part) = self.parts.iter_mut().find(inside) else { return };
        let first = (start - part.start) / PAGE_LEN as u64;
        for (at, word) in (0u64..).zip(words).filter(|(_, word)| **word != 0) {
            for bit in (0..WORD_BITS).filter(|bit| word & (1 << bit) != 0) {
                part.set(first + at * WORD_BITS + bit);
            }
        }
    }

    /// What was written by one account or the other.
    pub fn merge(&mut self, other: &Self) {
        for (part, other) in self.parts.iter_mut().zip(&other.parts) {
            for (word, other) in part.words.iter_mut().zip(&other.words) {
                *word |= other;
            }
        }
    }

    /// Whether page `page` of the part at guest address `start` was written.
    pub fn holds(&self, start: u64, page: u64) -> bool {
        self.parts.iter().find(|part| part.start == start).is_some_and(|part| part.has(page))
    }

    /// The runs of pages that were written, in the order of the file, as bytes of it. Where there would be more than `most` of them, those
    /// that lie nearest to each other become one.
    pub fn runs(&self, layout: &Layout, most: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        for part in layout.parts() {
            let Some(own) = self.parts.iter().find(|own| own.start == part.start) else { continue };
            own.for_pages(|page| {
                let offset = part.offset + page * PAGE_LEN as u64;
                match runs.last_mut() {
                    Some(Run { offset: at, len }) if *at + *len == offset => *len += PAGE_LEN as u64,
                    _ => runs.push(Run { offset, len: PAGE_LEN as u64 }),
                }
            });
        }
        let mut gap = PAGE_LEN as u64;
        while runs.len() > most.max(layout.parts().len()) {
            runs = join(&runs, layout, gap);
            gap = gap.saturating_mul(2);
        }
        runs
    }

    /// The pages of these bytes of the file were written, too.
    pub fn add_run(&mut self, layout: &Layout, run: Run) {
        let Some(part) = layout.part_of(run) else { return };
        let Some(own) = self.parts.iter_mut().find(|own| own.start == part.start) else { return };
        let first = (run.offset - part.offset) / PAGE_LEN as u64;
        (first..first + run.len / PAGE_LEN as u64).for_each(|page| own.set(page));
    }

    /// How many pages were.
    pub fn count(&self) -> u64 {
        self.parts.iter().flat_map(|part| &part.words).map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Runs between which there are no more than `gap` bytes of the same part become one.
fn join(runs: &[Run], layout: &Layout, gap: u64) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        if let Some(last) = joined.last_mut() {
            let both = Run { offset: last.offset, len: run.offset + run.len - last.offset };
            if run.offset - (last.offset + last.len) <= gap && layout.part_of(both).is_some() {
                *last = both;
                continue;
            }
        }
        joined.push(*run);
    }
    joined
}

impl DirtyPart {
    fn for_pages(&self, mut on_page: impl FnMut(u64)) {
        for (at, word) in (0u64..).zip(&self.words) {
            let mut left = *word;
            while left != 0 {
                on_page(at * WORD_BITS + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
    }

    fn set(&mut self, page: u64) {
        if page < self.pages
            && let Some(word) = usize::try_from(page / WORD_BITS).ok().and_then(|at| self.words.get_mut(at))
        {
            *word |= 1 << (page % WORD_BITS);
        }
    }

    fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / WORD_BITS).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & (1 << (page % WORD_BITS)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn runs_are_few_and_leave_nothing_out() {
        const PAGE: u64 = PAGE_LEN as u64;
        let layout = Layout::new([(GuestAddress(0), 1000 * PAGE), (GuestAddress(1 << 30), 200 * PAGE)].into_iter());
        let mut dirty = DirtyMap::new(&layout);
        let written = [0, 1, 2, 5, 63, 64, 65, 500, 999];
        written.iter().for_each(|page| dirty.add(page * PAGE, &[1]));
        dirty.add((1 << 30) + 7 * PAGE, &[0b11]);
        let pages = |runs: &[Run]| runs.iter().map(|run| (run.offset / PAGE, run.len / PAGE)).collect::<Vec<_>>();
        let all = dirty.runs(&layout, 100);
        // The last page of the first part and the first ones of the second are neighbours in the file only.
        assert_eq!(pages(&all), [(0, 3), (5, 1), (63, 3), (500, 1), (999, 1), (1007, 2)]);
        assert_eq!(pages(&dirty.runs(&layout, 5)), [(0, 6), (63, 3), (500, 1), (999, 1), (1007, 2)]);
        assert_eq!(pages(&dirty.runs(&layout, 0)), [(0, 1000), (1007, 2)]);
        let mut again = DirtyMap::new(&layout);
        all.iter().for_each(|run| again.add_run(&layout, *run));
        assert_eq!(again, dirty);
    }

    #[test]
    fn bits_land_where_their_pages_are() {
        let layout = Layout::new([(GuestAddress(0), 100 << 12), (GuestAddress(1 << 30), 70 << 12)].into_iter());
        let mut dirty = DirtyMap::new(&layout);
        dirty.add(0, &[0b101, 1 << 35]);
        // A slot that begins inside a part, whose bits are not aligned to ours.
        dirty.add((1 << 30) + (3 << 12), &[1 | 1 << 63, u64::MAX]);
        dirty.add(5 << 30, &[u64::MAX]);
        let found = |start| (0..200).filter(|page| dirty.holds(start, *page)).collect::<Vec<_>>();
        assert_eq!(found(0), [0, 2, 99]);
        assert_eq!(found(1 << 30), [3, 66, 67, 68, 69]);
        assert_eq!(dirty.count(), 8);
        let mut both = DirtyMap::new(&layout);
        both.add(0, &[0b10]);
        both.merge(&dirty);
        assert_eq!(both.count(), 9);
        assert!(!both.holds(7, 0) && !both.holds(0, u64::MAX));
    }
}
