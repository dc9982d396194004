//! Giving pages of guest memory back to the host.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::Bitmap;

use crate::ram::GuestRegion;

/// `HUGETLBFS_MAGIC` (include/uapi/linux/magic.h).
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
/// Where mmap flags hold the size of huge pages, as a power of two (include/uapi/asm-generic/hugetlb_encode.h).
const HUGE_SHIFT: u32 = 26;
const HUGE_MASK: u32 = 0x3f;
/// Huge pages that say nothing of their size.
const USUAL_HUGE_PAGE: u64 = 2 << 20;

/// Size in bytes of the pages of which the region is made; `None` if it is not ours to give back: memory that may only be read, and files
/// that have a name (persistent memory), where other people would miss what is taken out.
pub fn page_len(region: &GuestRegion) -> Option<u64> {
    if region.prot() & libc::PROT_WRITE == 0 {
        return None;
    }
    let file = region.file_offset().map(|place| place.file());
    if is_shared(region) && file.is_some_and(has_name) {
        return None;
    }
    if region.flags() & libc::MAP_HUGETLB != 0 {
        let log2 = (region.flags() as u32 >> HUGE_SHIFT) & HUGE_MASK;
        return if log2 == 0 { Some(USUAL_HUGE_PAGE) } else { 1u64.checked_shl(log2) };
    }
    match file.map(huge_page_len) {
        None => Some(host_page_len()),
        Some(Ok(huge)) => Some(huge.unwrap_or_else(host_page_len)),
        Some(Err(error)) => {
            log::warn!("memory of a file stays with the guest: fstatfs: {error}");
            None
        }
    }
}

/// Gives `len` bytes at `offset` of a region back; both are whole pages of it. Whoever looks at private anonymous or shared memory next,
/// guest or device, finds zeroes; in a private mapping of a file, what is in the file.
///
/// Nothing is mapped anew, so that a guest cannot make a mapping of thousands of pieces.
pub fn give_back(region: &GuestRegion, offset: u64, len: u64) -> io::Result<()> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= region.len());
    let (Ok(at), Ok(count), true) = (usize::try_from(offset), usize::try_from(len), inside) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let advise = |advice| {
        // SAFETY: the range was just found to lie in a live mapping. It is guest memory: nobody but the guest relies on its contents, and the
        // range stays mapped. Devices at work on these pages, or the kernel on their behalf, find zeroes or keep the old pages to themselves.
        match unsafe { libc::madvise(region.as_ptr().add(at).cast(), count, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if is_shared(region) {
        // DONTNEED on shared memory would only forget the page tables (mm/madvise.c); REMOVE makes a hole in what is mapped. A machine that
        // was cloned has a private mapping of what it shared before, which REMOVE refuses.
        match advise(libc::MADV_REMOVE) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => advise(libc::MADV_DONTNEED)?,
            other => other?,
        }
    } else {
        advise(libc::MADV_DONTNEED)?;
    }
    // Zeroes now, or what is in the file.
    region.bitmap().mark_dirty(at, count);
    Ok(())
}

fn is_shared(region: &GuestRegion) -> bool {
    region.flags() & libc::MAP_SHARED != 0
}

/// Whether a file can be found by others. One that cannot be told from such a file counts as one.
fn has_name(file: &File) -> bool {
    file.metadata().map_or(true, |metadata| metadata.nlink() != 0)
}

fn huge_page_len(file: &File) -> io::Result<Option<u64>> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes to a struct of the kernel's shape that is valid for its duration.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.f_type as u32 == HUGETLBFS_MAGIC).then_some(found.f_bsize as u64))
}

fn host_page_len() -> u64 {
    // SAFETY: a question without pointers.
    let len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(len).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestAddress, MemoryRegionAddress};

    use super::*;

    const PAGE: u64 = 4096;
    const LEN: u64 = 4 * PAGE;
    const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;

    fn region(prot: i32, flags: i32, file: Option<File>) -> GuestRegion {
        let mut builder = MmapRegionBuilder::new(LEN as usize).with_mmap_prot(prot).with_mmap_flags(flags);
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::new(file, 0));
        }
        GuestRegion::new(builder.build().unwrap(), GuestAddress(0x10_0000)).unwrap()
    }

    fn memfd() -> File {
        // SAFETY: a literal name; the descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(LEN).unwrap();
        file
    }

    /// Bytes of the region that are in memory.
    fn resident(region: &GuestRegion) -> u64 {
        let mut pages = [0u8; (LEN / PAGE) as usize];
        // SAFETY: the region is mapped, and the array has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(region.as_ptr().cast(), LEN as usize, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE
    }

    fn bytes(region: &GuestRegion) -> [u8; 4] {
        [0xfff, 0x1000, 0x2fff, 0x3000].map(|at| region.read_obj(MemoryRegionAddress(at)).unwrap())
    }

    #[test]
    fn private_memory_goes_back_and_reads_zero() {
        let region = region(WRITABLE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
        assert_eq!(page_len(&region), Some(PAGE));
        region.write_slice(&[7; LEN as usize], MemoryRegionAddress(0)).unwrap();
        assert_eq!(resident(&region), LEN);
        give_back(&region, PAGE, 2 * PAGE).unwrap();
        assert_eq!((resident(&region), bytes(&region)), (2 * PAGE, [7, 0, 0, 7]));
    }

    #[test]
    fn shared_memory_goes_back_out_of_its_file() {
        let file = memfd();
        let anonymous = region(WRITABLE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None);
        let memfd = region(WRITABLE, libc::MAP_SHARED, Some(file.try_clone().unwrap()));
        for region in [&anonymous, &memfd] {
            assert_eq!(page_len(region), Some(PAGE));
            region.write_slice(&[7; LEN as usize], MemoryRegionAddress(0)).unwrap();
            give_back(region, PAGE, 2 * PAGE).unwrap();
        }
        // Before the hole is looked at: that fills it again.
        assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * PAGE, "the file still has the pages");
        assert_eq!([bytes(&anonymous), bytes(&memfd)], [[7, 0, 0, 7]; 2]);
    }

    #[test]
    fn a_private_mapping_of_a_file_loses_its_own_pages_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        std::fs::write(&path, [9; LEN as usize]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let region = region(WRITABLE, libc::MAP_PRIVATE, Some(file));
        assert_eq!(page_len(&region), Some(PAGE));
        region.write_slice(&[7; LEN as usize], MemoryRegionAddress(0)).unwrap();
        give_back(&region, PAGE, 2 * PAGE).unwrap();
        assert_eq!(bytes(&region), [7, 9, 9, 7]);
        assert_eq!(std::fs::read(&path).unwrap(), [9; LEN as usize]);
    }

    #[test]
    fn what_is_not_ours_is_not_given_back() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(LEN).unwrap();
        let shared = region(WRITABLE, libc::MAP_SHARED, Some(named.reopen().unwrap()));
        assert_eq!(page_len(&shared), None, "a file with a name");
        let read_only = region(libc::PROT_READ, libc::MAP_SHARED, Some(memfd()));
        assert_eq!(page_len(&read_only), None);
        let huge = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        // Needs no huge page to exist as long as none is touched.
        let builder = MmapRegionBuilder::new(4 << 20).with_mmap_prot(WRITABLE).with_mmap_flags(huge | 21 << HUGE_SHIFT);
        match builder.build() {
            Ok(mapping) => {
                let region = GuestRegion::new(mapping, GuestAddress(0)).unwrap();
                assert_eq!(page_len(&region), Some(2 << 20));
                assert!(give_back(&region, 0x1000, 0x1000).is_err(), "a part of a huge page");
                give_back(&region, 2 << 20, 2 << 20).unwrap();
            }
            Err(error) => println!("skipped: no huge pages here: {error}"),
        }
    }

    #[test]
    fn nothing_outside_the_region_is_touched() {
        let region = region(WRITABLE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
        for (offset, len) in [(LEN, PAGE), (0, LEN + PAGE), (u64::MAX, PAGE), (PAGE, u64::MAX), (u64::MAX - 1, 2)] {
            let refused = give_back(&region, offset, len).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{offset:#x} {len:#x}");
        }
        assert!(give_back(&region, 1, PAGE).is_err(), "not whole pages");
    }
}
