//! Files without a name, in memory (memfd_create(2)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// `F_SEAL_FUTURE_WRITE` (include/uapi/linux/fcntl.h): nobody can write or map it writable and shared from now on.
const SEAL_FUTURE_WRITE: libc::c_int = 0x10;
const SEALS: libc::c_int = SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Whether a file may be so large. Where it may not, [`create`] would not only fail: the kernel would send SIGXFSZ.
pub fn check_limit(len: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a struct of the right type to write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if len > limit.rlim_cur {
        return Err(io::Error::other(format!(
            "a file in memory of {len} bytes is needed, and RLIMIT_FSIZE allows {}: raise it (jailer: --resource-limit fsize={len})",
            limit.rlim_cur
        )));
    }
    Ok(())
}

/// A file of `len` zeroes, which take no room. `name` is for whoever reads `/proc/PID/maps`.
pub fn create(name: &std::ffi::CStr, len: u64) -> io::Result<File> {
    create_with(name, len, libc::MFD_ALLOW_SEALING)
}

/// The same of huge pages of 2 MiB, which must be at hand when they are touched, and cannot be sealed on old kernels.
pub fn create_huge(name: &std::ffi::CStr, len: u64) -> io::Result<File> {
    create_with(name, len, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
}

fn create_with(name: &std::ffi::CStr, len: u64, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: a string that ends in a zero byte, valid for the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made by us and owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// Nobody changes it any more. There are no writable shared mappings of it.
pub fn seal(file: &File) -> io::Result<()> {
    // SAFETY: a call without pointers.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether it is a file in memory that nobody can change.
pub fn is_sealed(file: &File) -> bool {
    // SAFETY: a call without pointers.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    // Files that cannot be sealed give an error, which is negative.
    seals >= 0 && seals & SEALS == SEALS
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let file = create(c"test", 8192).unwrap();
        file.write_all_at(b"before", 4096).unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        file.write_all_at(b"after", 4096).unwrap_err();
        file.set_len(4096).unwrap_err();
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"before");
        assert!(!is_sealed(&tempfile::tempfile().unwrap()));
    }
}
