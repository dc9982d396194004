//! Looking at guest memory page by page, while its guest stands still.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Length of a page of the host in bytes, which is a guest's, too.
pub const PAGE_LEN: usize = 4096;

/// Which pages of a mapping are in memory: a byte for each, whose lowest bit says so. Pages that are swapped out are not, see [`has_swap`].
pub fn resident(memory: &VolatileSlice<'_, impl BitmapSlice>, pages: &mut Vec<u8>) -> io::Result<()> {
    pages.clear();
    pages.resize(memory.len().div_ceil(PAGE_LEN), 0);
    let guard = memory.ptr_guard();
    // SAFETY: the range is a live mapping, whose start is that of a page; the vector has a byte for each page.
    match unsafe { libc::mincore(guard.as_ptr().cast_mut().cast(), memory.len(), pages.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether pages of this process may be swapped out. Without an answer they may.
pub fn has_swap() -> bool {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut about: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of the right type to write to.
    unsafe { libc::sysinfo(&raw mut about) != 0 || about.totalswap != 0 }
}

/// Whether a page, or less, holds zeroes only.
pub fn is_zero(page: &VolatileSlice<'_, impl BitmapSlice>) -> bool {
    let guard = page.ptr_guard();
    let words = page.len() / size_of::<u64>();
    let first = guard.as_ptr().cast::<u64>();
    if !first.is_aligned() || !page.len().is_multiple_of(size_of::<u64>()) {
        let mut bytes = vec![0; page.len()];
        page.copy_to(&mut bytes);
        return bytes.iter().all(|byte| *byte == 0);
    }
    let mut at = 0;
    while at < words {
        let end = words.min(at + 32);
        let mut seen = 0;
        while at < end {
            // SAFETY: in the slice, and aligned. Volatile, because this is memory of a guest.
            seen |= unsafe { first.add(at).read_volatile() };
            at += 1;
        }
        if seen != 0 {
            return false;
        }
    }
    true
}

/// The next stretch of `file` from `from` on, before `end`, that is no hole: where it begins and ends. `None` if there is none.
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| -> io::Result<Option<u64>> {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        // SAFETY: a call without pointers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            // Nothing follows.
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(_) => Err(io::Error::last_os_error()),
        }
    };
    if from >= end {
        return Ok(None);
    }
    let Some(data) = seek(from, libc::SEEK_DATA)?.filter(|data| *data < end) else { return Ok(None) };
    let hole = seek(data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
    Ok(Some((data, hole)))
}

/// Writes all of `memory` to `file` at `offset`; the kernel reads it where it is.
pub fn write_all(file: &File, memory: &VolatileSlice<'_, impl BitmapSlice>, offset: u64) -> io::Result<()> {
    let guard = memory.ptr_guard();
    let mut done = 0;
    while done < memory.len() {
        let at = i64::try_from(offset.saturating_add(done as u64)).map_err(io::Error::other)?;
        // SAFETY: the rest of the slice, which the kernel only reads.
        let count = unsafe { libc::pwrite(file.as_raw_fd(), guard.as_ptr().add(done).cast(), memory.len() - done, at) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, MmapRegion, VolatileMemory};

    use super::*;

    #[test]
    fn only_touched_pages_are_resident() {
        let region = MmapRegion::<()>::new(64 * PAGE_LEN).unwrap();
        let all = region.as_volatile_slice();
        all.write_obj(1u8, 3 * PAGE_LEN).unwrap();
        all.write_obj(0u8, 40 * PAGE_LEN).unwrap();
        let mut pages = Vec::new();
        resident(&all, &mut pages).unwrap();
        let found: Vec<usize> = (0..64).filter(|page| pages[*page] & 1 != 0).collect();
        assert_eq!(found, [3, 40]);
    }

    #[test]
    fn any_byte_makes_a_page_not_zero() {
        let region = MmapRegion::<()>::new(2 * PAGE_LEN).unwrap();
        let page = region.get_slice(PAGE_LEN, PAGE_LEN).unwrap();
        assert!(is_zero(&page));
        for at in [0, 1, 7, 8, 2047, 4095] {
            page.write_obj(1u8, at).unwrap();
            assert!(!is_zero(&page), "{at}");
            page.write_obj(0u8, at).unwrap();
        }
        let odd = region.get_slice(3, 100).unwrap();
        assert!(is_zero(&odd));
        odd.write_obj(1u8, 99).unwrap();
        assert!(!is_zero(&odd));
    }

    #[test]
    fn memory_reaches_the_file() {
        let region = MmapRegion::<()>::new(PAGE_LEN).unwrap();
        let all = region.as_volatile_slice();
        all.write_slice(b"words", 10).unwrap();
        let file = tempfile::tempfile().unwrap();
        write_all(&file, &all, 8192).unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 8202).unwrap();
        assert_eq!(&bytes, b"words");
        let read_only = File::open("/dev/null").unwrap();
        assert!(write_all(&read_only, &all, 0).is_err());
    }
}
