//! Guest memory as devices see it.
//!
//! Most of it is RAM of the VMM's own. Some of it may be a file (persistent memory), perhaps one that may only be read: see [`Intent`].
//! Data may lie there, rings and descriptor tables may not: a file can become shorter while it is mapped, and then whoever looks at the
//! lost part is killed by SIGBUS. Data goes to the kernel by address, and the kernel answers EFAULT instead.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::sys::iovec::GuestIoVec;

/// All of a guest's RAM. Cloning it is cheap (the regions are shared) and keeps the mappings alive.
pub type GuestRam = GuestMemoryMmap<()>;

/// What a device wants with a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Read it.
    Read,
    /// Read or write it.
    Write,
}

/// The piece of RAM at `addr`, `len` bytes, if all of it lies in one region of RAM that can be written.
pub fn piece(ram: &GuestRam, addr: GuestAddress, len: usize) -> Option<GuestIoVec> {
    piece_for(ram, addr, len, Intent::Write)
}

/// The same for an `intent`: memory the guest may only read is no place to write to.
pub fn piece_for(ram: &GuestRam, addr: GuestAddress, len: usize, intent: Intent) -> Option<GuestIoVec> {
    if len == 0 {
        return Some(GuestIoVec::empty());
    }
    let region = ram.find_region(addr)?;
    if intent == Intent::Write && region.prot() & libc::PROT_WRITE == 0 {
        return None;
    }
    let offset = vm_memory::MemoryRegionAddress(addr.checked_offset_from(region.start_addr())?);
    region.get_slice(offset, len).ok().map(|slice| GuestIoVec::new(&slice))
}

/// Whether `[addr, addr + len)` lies in one region of RAM of the VMM's own, so that it can always be read and written.
pub fn contains(ram: &GuestRam, addr: u64, len: u64) -> bool {
    let own = |region: &GuestRegionMmap| region.file_offset().is_none() && region.prot() & libc::PROT_WRITE != 0;
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
            Arc::new(GuestRegionMmap::new(region.build().unwrap(), GuestAddress(base)).unwrap())
        };
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), PAGE)]).unwrap();
        let ram = ram.insert_region(mapped(0x1000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
        ram.insert_region(mapped(0x2000, libc::PROT_READ)).unwrap()
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
