//! What the guest says of its memory (virtio 1.3 §5.5.6.3 and §5.5.6.4).

use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain;

/// Bytes of an entry: a tag of 16 bits, then a value of 64.
const ENTRY_LEN: usize = 10;
/// Entries that are looked at. Linux knows 16; what comes after these is not read, however long the buffer.
const MAX_ENTRIES: usize = 64;
const MAX_LEN: usize = ENTRY_LEN * MAX_ENTRIES;

/// VIRTIO_BALLOON_S_*: the tag is the discriminant. From [`Stat::OomKill`] on they are Linux's (include/uapi/linux/virtio_balloon.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Stat {
    /// Bytes swapped in.
    SwapIn = 0,
    /// Bytes swapped out.
    SwapOut,
    /// Page faults that needed a disk.
    MajorFaults,
    /// Page faults that did not.
    MinorFaults,
    /// Bytes not in use for anything.
    FreeMemory,
    /// Bytes of memory the guest knows of.
    TotalMemory,
    /// Bytes that could be given to a program without swapping.
    AvailableMemory,
    /// Bytes of memory that hold copies of files.
    DiskCaches,
    /// Huge pages given out.
    HugetlbAllocations,
    /// Huge pages asked for in vain.
    HugetlbFailures,
    /// Processes killed for want of memory.
    OomKill,
    /// Times an allocation had to wait.
    AllocStall,
    /// Bytes looked at by the kernel's reclaim thread.
    AsyncScan,
    /// Bytes looked at by allocations themselves.
    DirectScan,
    /// Bytes freed by the kernel's reclaim thread.
    AsyncReclaim,
    /// Bytes freed by allocations themselves.
    DirectReclaim,
}

/// How many there are.
const COUNT: usize = Stat::DirectReclaim as usize + 1;

/// The guest's numbers, each as it was last sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestStats([Option<u64>; COUNT]);

impl GuestStats {
    /// One of them, if the guest ever sent it.
    pub fn get(&self, stat: Stat) -> Option<u64> {
        self.0.get(stat as usize).copied().flatten()
    }

    /// Takes in a buffer of entries. Those with unknown tags are passed over, of two with the same tag the last one counts. `false` if the
    /// buffer was not a number of whole entries, or too long; what could be read of it counts.
    pub(super) fn take_in(&mut self, buffer: &[GuestIoVec]) -> bool {
        let len = GuestIoVec::total(buffer);
        let whole = len.min(MAX_LEN);
        let mut bytes = [0; MAX_LEN];
        let Some(bytes) = bytes.get_mut(..whole) else { return false };
        if chain::read_bytes(buffer, bytes).is_none() {
            return false;
        }
        let (entries, ragged) = bytes.as_chunks::<ENTRY_LEN>();
        for [tag0, tag1, value @ ..] in entries {
            let tag = usize::from(u16::from_le_bytes([*tag0, *tag1]));
            if let Some(slot) = self.0.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(*value));
            }
        }
        ragged.is_empty() && len <= MAX_LEN
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    fn take_in(stats: &mut GuestStats, bytes: &mut [u8]) -> bool {
        // In pieces of seven, which cut through tags and values.
        let pieces: Vec<_> = bytes.chunks_mut(7).map(|part| GuestIoVec::new(&VolatileSlice::from(part))).collect();
        stats.take_in(&pieces)
    }

    fn entries(entries: &[(u16, u64)]) -> Vec<u8> {
        entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
    }

    #[test]
    fn known_tags_count_and_missing_ones_stay() {
        let mut stats = GuestStats::default();
        assert_eq!(stats.get(Stat::SwapIn), None);
        let mut bytes = entries(&[(15, 9), (0, u64::MAX), (16, 1), (0xffff, 2), (4, 5), (4, 6)]);
        assert!(take_in(&mut stats, &mut bytes));
        assert_eq!(stats.get(Stat::SwapIn), Some(u64::MAX));
        assert_eq!((stats.get(Stat::FreeMemory), stats.get(Stat::DirectReclaim)), (Some(6), Some(9)));
        assert_eq!(stats.get(Stat::OomKill), None);
        assert!(take_in(&mut stats, &mut entries(&[(10, 3)])));
        assert_eq!((stats.get(Stat::OomKill), stats.get(Stat::FreeMemory)), (Some(3), Some(6)));
        assert!(take_in(&mut stats, &mut []), "the first buffer may be empty");
    }

    #[test]
    fn ragged_and_endless_buffers_are_read_as_far_as_they_make_sense() {
        let mut stats = GuestStats::default();
        let mut ragged = entries(&[(1, 7), (2, 8)]);
        ragged.pop();
        assert!(!take_in(&mut stats, &mut ragged));
        assert_eq!((stats.get(Stat::SwapOut), stats.get(Stat::MajorFaults)), (Some(7), None));
        let mut endless = entries(&[(99, 0); MAX_ENTRIES]);
        endless.extend(entries(&[(3, 1)]));
        assert!(!take_in(&mut stats, &mut endless));
        assert_eq!(stats.get(Stat::MinorFaults), None, "behind the last entry that is looked at");
    }
}
