//! From an array of page numbers to ranges of guest memory.

use super::{PAGE_LEN, PAGE_SHIFT};
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain;

/// Page numbers read at a time. Linux sends 256 in a request.
pub(super) const BATCH: usize = 1024;
/// Bytes of a page number.
pub(super) const PFN_LEN: usize = 4;

/// A range of guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u64,
    pub len: u64,
}

impl Span {
    pub(super) fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Reads the page numbers in `pieces` from byte `skip` on, at most [`BATCH`], and appends the ranges they make up to `spans`, in order and
/// without overlap. Returns how many numbers it read and how many of them named a page again, or `None` if the buffer is shorter than it
/// said. `room` is scratch.
pub(super) fn read_batch(
    pieces: &[GuestIoVec],
    skip: usize,
    room: &mut Vec<GuestIoVec>,
    spans: &mut Vec<Span>,
) -> Option<(usize, usize)> {
    let left = GuestIoVec::total(pieces).saturating_sub(skip);
    let count = left.checked_div(PFN_LEN).unwrap_or(0).min(BATCH);
    let mut bytes = [0; BATCH * PFN_LEN];
    let bytes = bytes.get_mut(..count.saturating_mul(PFN_LEN))?;
    room.clear();
    chain::cut(pieces, skip, bytes.len(), room)?;
    chain::read_bytes(room, bytes)?;
    let (numbers, _) = bytes.as_chunks_mut::<PFN_LEN>();
    // Big-endian bytes sort like the numbers they are.
    numbers.iter_mut().for_each(|number| number.reverse());
    numbers.sort_unstable();
    let mut again = 0usize;
    for number in numbers {
        let start = u64::from(u32::from_be_bytes(*number)) << PAGE_SHIFT;
        match spans.last_mut() {
            Some(last) if last.end() == start => last.len = last.len.saturating_add(PAGE_LEN),
            Some(last) if last.end() > start => again = again.saturating_add(1),
            _ => spans.push(Span { start, len: PAGE_LEN }),
        }
    }
    Some((count, again))
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    /// Everything in `numbers`, cut in pieces of `piece_len` bytes.
    fn spans(numbers: &[u32], piece_len: usize) -> (Vec<(u64, u64)>, usize, usize) {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let pieces: Vec<_> =
            bytes.chunks_mut(piece_len).map(|part| GuestIoVec::new(&VolatileSlice::from(part))).collect();
        let (mut room, mut all, mut read, mut again) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let mut spans = Vec::new();
            let (count, twice) = read_batch(&pieces, read * PFN_LEN, &mut room, &mut spans).unwrap();
            if count == 0 {
                break;
            }
            all.extend(spans.iter().map(|span| (span.start >> PAGE_SHIFT, span.len >> PAGE_SHIFT)));
            (read, again) = (read + count, again + twice);
        }
        (all, read, again)
    }

    #[test]
    fn neighbours_become_one_range_in_whatever_order_they_come() {
        let numbers = [9, 3, 1, 2, u32::MAX, 5, 0x100, 4];
        for piece_len in [3, 4, 7, 64] {
            assert_eq!(spans(&numbers, piece_len), (vec![(1, 5), (9, 1), (0x100, 1), (0xffff_ffff, 1)], 8, 0));
        }
    }

    #[test]
    fn pages_named_twice_count_once() {
        assert_eq!(spans(&[7, 7, 8, 7, 8], 4), (vec![(7, 2)], 5, 3));
        assert_eq!(spans(&[], 4), (vec![], 0, 0));
    }

    #[test]
    fn long_arrays_come_in_batches() {
        let numbers: Vec<u32> = (0..2 * BATCH as u32 + 5).rev().collect();
        let batch = BATCH as u64;
        assert_eq!(spans(&numbers, 100), (vec![(batch + 5, batch), (5, batch), (0, 5)], numbers.len(), 0));
    }
}
