//! The guest's memory map, as both boot protocols tell it: which addresses are RAM and which to avoid.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::super::layout;
use devices::ram::GuestRam;

/// What a range of the map is. The numbers are those of e820 and, identically, of PVH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory the guest may use.
    Ram = 1,
    /// Not to be used for anything.
    Reserved = 2,
}

/// One range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical start.
    pub start: u64,
    /// Length in bytes; never zero.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// The memory map of a machine with this RAM, sorted, without overlaps and without empty ranges.
#[must_use]
pub fn ranges(ram: &GuestRam) -> Vec<Range> {
    let mut map = Vec::with_capacity(8);
    let mut push = |start: u64, end: u64, kind| {
        if start < end {
            map.push(Range { start, len: end - start, kind });
        }
    };
    let system = layout::SYSTEM_AREA_START.0;
    let high = layout::HIGH_MEMORY_START.0;
    for region in ram.iter() {
        let start = region.start_addr().0;
        let end = start.saturating_add(region.len());
        push(start, end.min(system), Kind::Ram);
        push(start.max(high), end, Kind::Ram);
    }
    push(system, high, Kind::Reserved);
    let ecam = layout::PCI_MMCONFIG_START.0;
    push(ecam, ecam + layout::PCI_MMCONFIG_LEN, Kind::Reserved);
    map.sort_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn map(regions: &[(GuestAddress, usize)]) -> Vec<(u64, u64, Kind)> {
        ranges(&GuestRam::from_ranges(regions).unwrap())
            .into_iter()
            .map(|r| (r.start, r.start + r.len, r.kind))
            .collect()
    }

    #[test]
    fn the_usual_machine() {
        assert_eq!(
            map(&[(GuestAddress(0), 128 << 20)]),
            [
                (0, 0x9fc00, Kind::Ram),
                (0x9fc00, 0x10_0000, Kind::Reserved),
                (0x10_0000, 128 << 20, Kind::Ram),
                (0xeec0_0000, 0xfec0_0000, Kind::Reserved),
            ]
        );
    }

    #[test]
    fn memory_above_the_hole_is_its_own_range() {
        // Stand-in sizes: mapping 3 GiB in a unit test would be rude.
        let map = map(&[(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 2 << 20)]);
        assert_eq!(map.last(), Some(&(4 << 30, (4 << 30) + (2 << 20), Kind::Ram)));
        assert!(map.windows(2).all(|w| w[0].1 <= w[1].0), "{map:x?}");
    }

    #[test]
    fn a_machine_of_one_mebibyte_has_no_high_memory() {
        let map = map(&[(GuestAddress(0), 1 << 20)]);
        assert_eq!(map[..2], [(0, 0x9fc00, Kind::Ram), (0x9fc00, 0x10_0000, Kind::Reserved)]);
        assert_eq!(map.len(), 3);
    }
}
