//! Which parts of a range of guest addresses can go back to the host, and in which steps.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::pfns::Span;
use crate::ram::GuestRam;
use crate::sys::give_back;
use crate::sys::iovec::GuestIoVec;

/// Bytes given back in one call: 512 pages take the host a fraction of a millisecond.
const STEP_LEN: u64 = 2 << 20;

#[derive(Debug, Clone, Copy)]
struct Region {
    span: Span,
    host: u64,
    /// See [`give_back::page_len`].
    page_len: Option<u64>,
}

/// The regions of guest memory, looked up once: neither place nor kind changes while a device is active.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<Region>);

/// The beginning of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// How long it is.
    pub len: u64,
    /// The part of it that consists of whole pages the host can have.
    pub give: Option<Span>,
}

impl Regions {
    /// The regions of `ram`.
    pub(super) fn of(ram: &GuestRam) -> Self {
        let region = |region: &crate::ram::GuestRegion| Region {
            span: Span { start: region.start_addr().0, len: region.len() },
            host: region.as_ptr() as u64,
            page_len: give_back::page_len(region),
        };
        Self(ram.iter().map(region).collect())
    }

    /// The guest addresses of a buffer.
    pub(super) fn locate(&self, piece: &GuestIoVec) -> Option<Span> {
        let (host, len) = (piece.as_ptr() as u64, piece.len() as u64);
        self.0.iter().find_map(|region| {
            let offset = host.checked_sub(region.host)?;
            let inside = offset.checked_add(len)? <= region.span.len;
            inside.then(|| Span { start: region.span.start.saturating_add(offset), len })
        })
    }

    /// Cuts the first step off a range that is not empty. Never empty itself.
    pub(super) fn step(&self, span: Span) -> Step {
        let Some(region) =
            self.0.iter().find(|region| region.span.start <= span.start && span.start < region.span.end())
        else {
            let ahead = self.0.iter().map(|region| region.span.start).filter(|start| *start > span.start);
            let until = ahead.min().map_or(span.end(), |start| start.min(span.end()));
            return Step { len: until.saturating_sub(span.start), give: None };
        };
        let end = span.end().min(region.span.end());
        let Some(page_len) = region.page_len else {
            return Step { len: end.saturating_sub(span.start), give: None };
        };
        let base = region.span.start;
        let offset = |address: u64| address.saturating_sub(base);
        let step = STEP_LEN.max(page_len);
        // Up to the next multiple of a step, so that no step ends inside a page.
        let boundary = offset(span.start).saturating_add(1).next_multiple_of(step);
        let end = end.min(base.saturating_add(boundary));
        let first = offset(span.start).next_multiple_of(page_len);
        let last = offset(end).checked_div(page_len).unwrap_or(0).saturating_mul(page_len);
        let give = (first < last).then(|| Span { start: base.saturating_add(first), len: last.saturating_sub(first) });
        Step { len: end.saturating_sub(span.start), give }
    }
}

/// Gives a range back that [`Regions::step`] named.
pub(super) fn give_back(ram: &GuestRam, span: Span) -> io::Result<()> {
    let region = ram.find_region(GuestAddress(span.start)).ok_or(io::ErrorKind::InvalidInput)?;
    give_back::give_back(region, span.start.saturating_sub(region.start_addr().0), span.len)
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn regions() -> Regions {
        let region =
            |start: u64, len: u64, page_len| Region { span: Span { start, len }, host: start + (1 << 40), page_len };
        Regions(vec![
            region(0, 8 * MIB, Some(4096)),
            region(16 * MIB, 8 * MIB, Some(2 * MIB)),
            region(24 * MIB, 2 * MIB, None),
            region(32 * MIB, 64 * MIB, Some(16 * MIB)),
        ])
    }

    /// What of a range goes back, and how much of it stays, which together are the whole range.
    fn walk(start: u64, len: u64) -> (Vec<(u64, u64)>, u64) {
        let (regions, mut at, mut given, mut kept) = (regions(), start, Vec::new(), 0);
        while at < start + len {
            let step = regions.step(Span { start: at, len: start + len - at });
            assert!(step.len > 0 && at + step.len <= start + len, "{at:#x}: {step:?}");
            kept += step.len;
            if let Some(span) = step.give {
                assert!(span.start >= at && span.end() <= at + step.len && span.len > 0);
                kept -= span.len;
                given.push((span.start, span.len));
            }
            at += step.len;
        }
        (given, kept)
    }

    #[test]
    fn ranges_go_back_in_steps() {
        assert_eq!(walk(0x3000, 0x2000), (vec![(0x3000, 0x2000)], 0));
        assert_eq!(
            walk(MIB, 4 * MIB),
            (vec![(MIB, MIB), (2 * MIB, 2 * MIB), (4 * MIB, MIB)], 0),
            "steps end at multiples"
        );
    }

    #[test]
    fn parts_of_pages_stay() {
        assert_eq!(walk(0x1001, 0x1fff), (vec![(0x2000, 0x1000)], 0xfff));
        assert_eq!(walk(0x1001, 0x1000), (vec![], 0x1000));
        assert_eq!(walk(16 * MIB, MIB), (vec![], MIB), "half a huge page");
        assert_eq!(walk(17 * MIB, 4 * MIB), (vec![(18 * MIB, 2 * MIB)], 2 * MIB));
        assert_eq!(walk(33 * MIB, 40 * MIB), (vec![(48 * MIB, 16 * MIB)], 24 * MIB), "pages longer than a step");
    }

    #[test]
    fn holes_and_memory_of_others_stay() {
        assert_eq!(walk(7 * MIB, 10 * MIB), (vec![(7 * MIB, MIB)], 9 * MIB));
        assert_eq!(walk(22 * MIB, 11 * MIB), (vec![(22 * MIB, 2 * MIB)], 9 * MIB));
        assert_eq!(walk(1 << 43, 1 << 12), (vec![], 1 << 12));
        assert_eq!(regions().step(Span { start: u64::MAX - 1, len: u64::MAX }), Step { len: 1, give: None });
    }

    #[test]
    fn buffers_are_found_by_their_host_address() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x10_0000), 0x4000)]).unwrap();
        let regions = Regions::of(&ram);
        let piece = GuestIoVec::new(&ram.get_slice(GuestAddress(0x10_1000), 0x800).unwrap());
        assert_eq!(regions.locate(&piece), Some(Span { start: 0x10_1000, len: 0x800 }));
        let mut elsewhere = [0; 16];
        assert_eq!(regions.locate(&GuestIoVec::new(&VolatileSlice::from(&mut elsewhere[..]))), None);
        give_back(&ram, Span { start: 0x10_1000, len: 0x1000 }).unwrap();
        assert!(give_back(&ram, Span { start: 0x10_3000, len: 0x2000 }).is_err());
        assert!(give_back(&ram, Span { start: 0x8000, len: 0x1000 }).is_err());
    }
}
