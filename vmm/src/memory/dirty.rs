//! Which pages of guest memory were written since somebody last looked.

use super::Layout;
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

    /// How many pages were.
    pub fn count(&self) -> u64 {
        self.parts.iter().flat_map(|part| &part.words).map(|word| u64::from(word.count_ones())).sum()
    }
}

impl DirtyPart {
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
