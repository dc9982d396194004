//! Mapping files as guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use devices::ram::DirtyPages;
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion};

use super::advice;

/// Maps the first `file_len` bytes of a file, shared, and zeroes of our own behind its last page, `len` bytes in all. The region
/// remembers the file it comes from, and can be written unless it is `read_only`.
pub fn file_with_zeroes_behind(
    file: FileOffset,
    file_len: usize,
    len: usize,
    read_only: bool,
) -> Result<MmapRegion<DirtyPages>, MmapRegionError> {
    if file_len == 0 || file_len > len {
        return Err(MmapRegionError::InvalidOffsetLength);
    }
    let prot = if read_only { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
    // Zeroes everywhere first. The kernel takes no notice of the file with MAP_ANONYMOUS; the region keeps it.
    let region = MmapRegionBuilder::new(len)
        .with_mmap_prot(prot)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .with_file_offset(file)
        .build()?;
    let Some(file) = region.file_offset() else { return Err(MmapRegionError::InvalidOffsetLength) };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: replaces pages of a mapping that was made above, is at least that long, and that nobody else knows of yet.
    let at = unsafe { libc::mmap(region.as_ptr().cast(), file_len, prot, flags, file.file().as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(MmapRegionError::Mmap(io::Error::last_os_error()));
    }
    Ok(region)
}

/// Who sees what is written to a mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// This process only: the file stays as it is.
    Private,
    /// The file.
    Shared,
}

/// Puts a file's bytes from `from` on behind `len` bytes at `at` of guest memory: all of it, until it is written. What was there is gone.
/// The file must be long enough by the time that somebody looks.
pub fn file_behind(
    region: &MmapRegion<impl Bitmap>,
    (at, len): (usize, usize),
    file: &File,
    from: u64,
    writes: Writes,
) -> io::Result<()> {
    if at > region.size() || len > region.size() - at {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let kind = match writes {
        Writes::Private => libc::MAP_PRIVATE,
        Writes::Shared => libc::MAP_SHARED,
    };
    let flags = kind | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let from = i64::try_from(from).map_err(io::Error::other)?;
    // SAFETY: in bounds of the mapping.
    let place = unsafe { region.as_ptr().add(at) };
    // SAFETY: replaces pages of exactly this mapping. It is guest memory, whose contents may change at any time anyway, and stays mapped.
    let mapped = unsafe { libc::mmap(place.cast(), len, prot, flags, file.as_raw_fd(), from) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // The advice went with the mapping that was replaced.
    advice::no_core_dump(region);
    Ok(())
}

/// Pages that were moved out of guest memory. Dropping it unmaps them.
#[derive(Debug)]
pub struct Aside {
    at: *mut libc::c_void,
    len: usize,
}

// SAFETY: nobody looks at the pages; all that is done with them is to unmap them, which any thread may.
unsafe impl Send for Aside {}

impl Drop for Aside {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that mremap made for us, which nobody else knows of.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// Moves the pages of a region elsewhere, and leaves the mapping, which is empty then: that takes a tenth of the time in which they are
/// unmapped, which can be done when nobody waits. `None` where the kernel does not do so (before Linux 5.13 if they are shared).
pub fn move_aside(region: &MmapRegion<impl Bitmap>) -> Option<Aside> {
    /// `MREMAP_DONTUNMAP` (include/uapi/linux/mman.h).
    const DONTUNMAP: libc::c_int = 4;
    let (at, len) = (region.as_ptr().cast(), region.size());
    // Said, because the kernel reads it and not every C library passes a zero.
    let anywhere = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the whole of a live mapping, which stays one. It is guest memory, whose contents may change at any time anyway.
    let moved = unsafe { libc::mremap(at, len, len, libc::MREMAP_MAYMOVE | DONTUNMAP, anywhere) };
    (moved != libc::MAP_FAILED).then(|| Aside { at: moved, len })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, VolatileMemory};

    use super::*;

    fn mapped(file: &std::fs::File, file_len: usize, read_only: bool) -> MmapRegion<DirtyPages> {
        file_with_zeroes_behind(FileOffset::new(file.try_clone().unwrap(), 0), file_len, 2 << 20, read_only).unwrap()
    }

    #[test]
    fn pages_that_are_moved_aside_leave_the_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let region = MmapRegion::<()>::new(0x4000).unwrap();
        file_behind(&region, (0, 0x4000), &file, 0, Writes::Shared).unwrap();
        region.as_volatile_slice().write_obj(7u8, 0x1000).unwrap();
        let aside = move_aside(&region).expect("Linux 5.13");
        file_behind(&region, (0, 0x4000), &file, 0, Writes::Private).unwrap();
        let byte = || region.as_volatile_slice().read_obj::<u8>(0x1000).unwrap();
        assert_eq!(byte(), 7);
        region.as_volatile_slice().write_obj(8u8, 0x1000).unwrap();
        drop(aside);
        let mut in_file = [0];
        file.read_exact_at(&mut in_file, 0x1000).unwrap();
        assert_eq!((byte(), in_file), (8, [7]));
    }

    #[test]
    fn what_is_written_is_in_the_file_and_behind_it_are_zeroes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        let region = mapped(&file, 5000, false);
        let all = region.as_volatile_slice();
        let byte = |at: usize| all.read_obj::<u8>(at).unwrap();
        // The last page's tail, the first page behind it, and the end.
        assert_eq!([byte(4999), byte(5000), byte(8192), byte((2 << 20) - 1)], [7, 0, 0, 0]);
        all.write_obj(9u8, 4000).unwrap();
        all.write_obj(9u8, 8192).unwrap();
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 3999).unwrap();
        assert_eq!(bytes, [7, 9]);
        assert_eq!(file.metadata().unwrap().len(), 5000);
        assert_eq!(byte(8192), 9);
    }
}
