//! System calls on the file or block device behind a drive.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::iovec::GuestIoVec;

/// `BLKGETSIZE64` (include/uapi/linux/fs.h): the size of a block device in bytes.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Turns the result of a system call into an `io::Result`.
fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Length in bytes of a regular file or block device.
pub fn len_bytes(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(metadata.len());
    }
    let mut len = 0u64;
    // SAFETY: the ioctl writes one u64 to the pointer, which is valid for the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut len) } as libc::ssize_t)?;
    Ok(len)
}

/// The digits of device, special device and inode numbers: what identifies the file behind a drive on this host.
pub fn identity(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    Ok(format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino()))
}

/// Clears `O_NONBLOCK`. It means nothing to `preadv`, but io_uring takes it as a wish to fail with EAGAIN instead of waiting for the
/// disk (io_uring/rw.c, `io_rw_init_file`).
pub fn make_blocking(file: &File) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments on a descriptor we own.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } as libc::ssize_t)?;
    let blocking = flags as libc::c_int & !libc::O_NONBLOCK;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, blocking) } as libc::ssize_t).map(drop)
}

/// `preadv`: reads at `offset` into guest memory and returns how many bytes it read.
pub fn read(file: &File, pieces: &[GuestIoVec], offset: u64) -> io::Result<usize> {
    let (vectors, count) = vectors(pieces);
    // SAFETY: the vectors describe mapped guest memory (contract of `GuestIoVec`); the kernel checks the rest.
    check(unsafe { libc::preadv(file.as_raw_fd(), vectors, count, signed(offset)?) })
}

/// `pwritev`: writes guest memory at `offset` and returns how many bytes it wrote.
pub fn write(file: &File, pieces: &[GuestIoVec], offset: u64) -> io::Result<usize> {
    let (vectors, count) = vectors(pieces);
    // SAFETY: as in `read`.
    check(unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, signed(offset)?) })
}

/// `fallocate` with `mode` on `len` bytes at `offset`. On block devices the kernel turns the modes used here into discards and zeroing
/// (block/fops.c, `blkdev_fallocate`).
pub fn allocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, signed(offset)?, signed(len)?) } as libc::ssize_t).map(drop)
}

fn vectors(pieces: &[GuestIoVec]) -> (*const libc::iovec, libc::c_int) {
    // A chain has at most as many pieces as a queue has entries, far below IOV_MAX.
    (GuestIoVec::as_iovecs(pieces).as_ptr(), libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX))
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}
