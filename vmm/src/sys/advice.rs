//! Advice to the kernel about guest memory.

use std::io;

use vm_memory::MmapRegion;
use vm_memory::bitmap::Bitmap;

/// Keeps a region out of core dumps: guest secrets do not belong into a dump of the VMM.
pub fn no_core_dump(region: &MmapRegion<impl Bitmap>) {
    advise(region, libc::MADV_DONTDUMP);
}

/// Asks for transparent huge pages.
pub fn huge_pages(region: &MmapRegion<impl Bitmap>) {
    advise(region, libc::MADV_HUGEPAGE);
}

/// Leaves a region out of children, of which we have none.
pub fn no_fork(region: &MmapRegion<impl Bitmap>) {
    advise(region, libc::MADV_DONTFORK);
}

/// Gives pages of private anonymous memory back to the host. Whoever looks at them next, guest or device, finds zeroes.
pub fn discard(region: &MmapRegion<impl Bitmap>, offset: usize, len: usize) -> io::Result<()> {
    // Pages of a file would come back with what is in the file.
    let anonymous = region.flags() & libc::MAP_ANONYMOUS != 0 && region.flags() & libc::MAP_PRIVATE != 0;
    if !anonymous || offset > region.size() || len > region.size() - offset {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range was just found to lie in a live mapping. It is guest memory, whose contents may change at any time anyway.
    match unsafe { libc::madvise(region.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED) } {
        0 => {
            region.bitmap().mark_dirty(offset, len);
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has pages mapped as if somebody had read them, or written to them. Where the kernel does not know that (before Linux 5.14), they are read
/// from their file at least.
pub fn populate(region: &MmapRegion<impl Bitmap>, offset: u64, len: u64, write: bool) -> io::Result<()> {
    /// `MADV_POPULATE_READ`, `MADV_POPULATE_WRITE` (include/uapi/asm-generic/mman-common.h).
    const POPULATE: [libc::c_int; 2] = [22, 23];
    let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if offset > region.size() || len > region.size() - offset {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let [read, written] = POPULATE;
    for advice in [if write { written } else { read }, libc::MADV_WILLNEED] {
        // SAFETY: the range was just found to lie in a live mapping, whose contents stay as they are.
        if unsafe { libc::madvise(region.as_ptr().add(offset).cast(), len, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Ok(())
}

/// Advice that is not taken costs nothing, so errors are ignored.
fn advise(region: &MmapRegion<impl Bitmap>, advice: libc::c_int) {
    // SAFETY: the range is exactly one live mapping, and neither piece of advice changes its contents.
    unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, VolatileMemory};

    use super::*;

    #[test]
    fn discarded_pages_are_zeroes_and_others_stay() {
        let region = MmapRegion::<()>::new(0x4000).unwrap();
        let all = region.as_volatile_slice();
        all.write_slice(&[7; 0x4000], 0).unwrap();
        discard(&region, 0x1000, 0x2000).unwrap();
        let byte = |at: usize| all.read_obj::<u8>(at).unwrap();
        assert_eq!([0xfff, 0x1000, 0x2fff, 0x3000].map(byte), [7, 0, 0, 7]);
        for (offset, len) in [(0x4000, 0x1000), (0, 0x5000), (usize::MAX, 0x1000), (0x1000, usize::MAX)] {
            assert_eq!(discard(&region, offset, len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(discard(&region, 1, 0x1000).is_err(), "not whole pages");
    }
}
