//! Guest memory as devices see it.
//!
//! Most of it is RAM of the VMM's own. Some of it may be a file (persistent memory), perhaps one that may only be read: see [`Intent`].
//! Data may lie there, rings and descriptor tables may not: a file can become shorter while it is mapped, and then whoever looks at the
//! lost part is killed by SIGBUS. Data goes to the kernel by address, and the kernel answers EFAULT instead.

use std::num::NonZeroUsize;

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    VolatileSlice,
};

use crate::sys::iovec::GuestIoVec;

/// All of a guest's RAM. Cloning it is cheap (the regions are shared) and keeps the mappings alive.
pub type GuestRam = GuestMemoryMmap<DirtyPages>;

/// A region of it.
pub type GuestRegion = GuestRegionMmap<DirtyPages>;

/// A part of a region.
pub type GuestSlice<'a> = VolatileSlice<'a, Option<RefSlice<'a, AtomicBitmap>>>;

/// Length of a page, in bytes.
const PAGE_LEN: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Which pages of a region anyone but the guest has written to, if somebody wants to know. vCPUs' own writes are KVM's to tell.
#[derive(Debug, Default)]
pub struct DirtyPages(Option<AtomicBitmap>);

impl DirtyPages {
    /// Of a region of `len` bytes, to be known.
    pub fn known(len: usize) -> Self {
        Self(Some(AtomicBitmap::new(len, PAGE_LEN)))
    }

    /// A bit for each page that was written to since this was last asked, the first one lowest. Nothing if nobody wanted to know.
    pub fn take(&self) -> Vec<u64> {
        self.0.as_ref().map(AtomicBitmap::get_and_reset).unwrap_or_default()
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyPages {
    type S = Option<RefSlice<'a, AtomicBitmap>>;
}

impl Bitmap for DirtyPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> Option<RefSlice<'_, AtomicBitmap>> {
        self.0.slice_at(offset)
    }
}

impl NewBitmap for DirtyPages {
    /// Nobody wants to know.
    fn with_len(_len: usize) -> Self {
        Self(None)
    }
}

/// What a device wants with a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Read it.
    Read,
    /// Read or write it.
    Write,
}

/// A bit for each page of a region that was written to since this was last asked, see [`DirtyPages::take`].
pub fn take_dirty(region: &GuestRegion) -> Vec<u64> {
    // The mapping's own; the region would give a view of it.
    MmapRegion::bitmap(region).take()
}

/// The piece of RAM at `addr`, `len` bytes, if all of it lies in one region of RAM that can be written.
pub fn piece(ram: &GuestRam, addr: GuestAddress, len: usize) -> Option<GuestIoVec> {
    piece_for(ram, addr, len, Intent::Write)
}

/// The same for an `intent`: memory the guest may only read is no place to write to, and what may be written counts as written.
pub fn piece_for(ram: &GuestRam, addr: GuestAddress, len: usize, intent: Intent) -> Option<GuestIoVec> {
    if len == 0 {
        return Some(GuestIoVec::empty());
    }
    let region = ram.find_region(addr)?;
    if intent == Intent::Write && region.prot() & libc::PROT_WRITE == 0 {
        return None;
    }
    let offset = vm_memory::MemoryRegionAddress(addr.checked_offset_from(region.start_addr())?);
    let slice = region.get_slice(offset, len).ok()?;
    if intent == Intent::Write {
        slice.bitmap().mark_dirty(0, len);
    }
    Some(GuestIoVec::new(&slice))
}

/// Whether `[addr, addr + len)` lies in one region of RAM of the VMM's own, so that it can always be read and written.
pub fn contains(ram: &GuestRam, addr: u64, len: u64) -> bool {
    let own = |region: &GuestRegion| region.file_offset().is_none() && region.prot() & libc::PROT_WRITE != 0;
    ram.find_region(GuestAddress(addr)).is_some_and(own)
        && usize::try_from(len).is_ok_and(|len| ram.get_slice(GuestAddress(addr), len).is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::FileOffset;
    use vm_memory::mmap::MmapRegionBuilder;

    use super::*;

    const PAGE: usize = 0x1000;

    /// One page of RAM, one of a file, and one of a file that may only be read.
    fn memory() -> GuestRam {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let mapped = |base, prot| {
            let region = MmapRegionBuilder::new(PAGE)
                .with_mmap_prot(prot)
                .with_mmap_flags(libc::MAP_SHARED)
                .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0));
            Arc::new(GuestRegion::new(region.build().unwrap(), GuestAddress(base)).unwrap())
        };
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), PAGE)]).unwrap();
        let ram = ram.insert_region(mapped(0x1000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
        ram.insert_region(mapped(0x2000, libc::PROT_READ)).unwrap()
    }

    #[test]
    fn what_devices_may_write_is_known_if_somebody_asks() {
        let region = MmapRegionBuilder::new_with_bitmap(4 * PAGE, DirtyPages::known(4 * PAGE))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let region = GuestRegion::new(region.build().unwrap(), GuestAddress(0)).unwrap();
        let ram = GuestRam::from_regions(vec![region]).unwrap();
        let dirty = || take_dirty(ram.iter().next().unwrap());
        assert_eq!(dirty(), [0]);
        piece_for(&ram, GuestAddress(0), 100, Intent::Read).unwrap();
        assert_eq!(dirty(), [0]);
        piece_for(&ram, GuestAddress(PAGE as u64 - 1), 2, Intent::Write).unwrap();
        vm_memory::Bytes::write_obj(&ram, 1u8, GuestAddress(3 * PAGE as u64)).unwrap();
        assert_eq!(dirty(), [0b1011]);
        assert_eq!(dirty(), [0]);
        let silent = GuestRam::from_ranges(&[(GuestAddress(0), PAGE)]).unwrap();
        assert!(take_dirty(silent.iter().next().unwrap()).is_empty());
    }

    #[test]
    fn a_place_must_suit_its_use() {
        let ram = memory();
        let place = |addr, len, intent| piece_for(&ram, GuestAddress(addr), len, intent).is_some();
        let can = |addr| (place(addr, 8, Intent::Read), place(addr, 8, Intent::Write), contains(&ram, addr, 8));
        assert_eq!(can(0xff8), (true, true, true));
        assert_eq!(can(0x1000), (true, true, false));
        assert_eq!(can(0x2ff8), (true, false, false));
        assert_eq!(can(0x3000), (false, false, false));
        // Not across the edge of two regions, and not past the end of all addresses.
        assert_eq!(can(0xffc), (false, false, false));
        assert_eq!(can(u64::MAX - 3), (false, false, false));
        assert!(!place(0, usize::MAX, Intent::Read) && !contains(&ram, 0, u64::MAX));
        assert!(place(0x9000, 0, Intent::Write), "nothing is everywhere");
    }
}
