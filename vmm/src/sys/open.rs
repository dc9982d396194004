//! Opening a path that a caller named, on the caller's terms and no further.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// File system type of procfs (linux/magic.h).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Opens `path` with `flags` (`O_CLOEXEC` is added), like `open(2)`, but follows no magic link: a link such as `/proc/self/fd/0` leads to
/// whatever this process has open and not to a place in the file system. Kernels before 5.6 cannot tell and open plainly.
pub fn open_without_magic_links(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: plain data, for which all zeroes is a value; the kernel wants unknown fields to be zero.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = u64::from(flags.cast_unsigned());
    how.resolve = libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: `path` and `how` are valid for the call, and the size given is that of `how`.
    let fd =
        unsafe { libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &how, size_of::<libc::open_how>()) };
    let fd = match i32::try_from(fd) {
        Ok(fd @ 0..) => fd,
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) => {
            // SAFETY: `path` is a C string and valid for the call.
            match unsafe { libc::open(path.as_ptr(), flags) } {
                fd @ 0.. => fd,
                _ => return Err(io::Error::last_os_error()),
            }
        }
        _ => return Err(io::Error::last_os_error()),
    };
    // SAFETY: just opened by us and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Whether `file` is a view of the kernel or of a process (`/proc/self/mem`) rather than something stored.
pub fn is_on_procfs(file: &File) -> io::Result<bool> {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut about: libc::statfs = unsafe { zeroed() };
    // SAFETY: a valid descriptor, and a struct of the right type to write to.
    match unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) } {
        0 => Ok(about.f_type.cast_unsigned() == PROC_SUPER_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_links_are_not_followed_and_others_are() {
        let open = |path: &Path| open_without_magic_links(path, libc::O_RDONLY);
        assert_eq!(open(Path::new("/proc/self/exe")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(open(Path::new("/nowhere/at/all")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(open(Path::new("a\0b")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(!is_on_procfs(&open(&link).unwrap()).unwrap());
    }

    #[test]
    fn procfs_is_recognised_behind_ordinary_links() {
        let file = open_without_magic_links(Path::new("/proc/self/mem"), libc::O_RDONLY).unwrap();
        assert!(is_on_procfs(&file).unwrap());
    }
}
