//! The three system calls of Landlock, and its numbers (include/uapi/linux/landlock.h).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Rights on files and directories.
pub const EXECUTE: u64 = 1 << 0;
/// Open for writing.
pub const WRITE_FILE: u64 = 1 << 1;
/// Open for reading.
pub const READ_FILE: u64 = 1 << 2;
/// List a directory.
pub const READ_DIR: u64 = 1 << 3;
/// Remove a directory.
pub const REMOVE_DIR: u64 = 1 << 4;
/// Make a character device.
pub const MAKE_CHAR: u64 = 1 << 6;
/// Make a directory.
pub const MAKE_DIR: u64 = 1 << 7;
/// Make a regular file.
pub const MAKE_REG: u64 = 1 << 8;
/// Bind a socket to a path.
pub const MAKE_SOCK: u64 = 1 << 9;
/// Make a FIFO.
pub const MAKE_FIFO: u64 = 1 << 10;
/// Make a block device.
pub const MAKE_BLOCK: u64 = 1 << 11;
/// Make a symbolic link.
pub const MAKE_SYM: u64 = 1 << 12;
/// Link or rename into another directory. ABI 2.
pub const REFER: u64 = 1 << 13;
/// Cut a file by its path. ABI 3.
pub const TRUNCATE: u64 = 1 << 14;
/// Use the ioctls of a device that is opened from now on. ABI 5.
pub const IOCTL_DEVICE: u64 = 1 << 15;

/// TCP. ABI 4.
pub const BIND_TCP: u64 = 1 << 0;
/// As above.
pub const CONNECT_TCP: u64 = 1 << 1;

/// Sockets with abstract names of processes outside. ABI 6.
pub const ABSTRACT_SOCKETS: u64 = 1 << 0;
/// Signals to processes outside. ABI 6.
pub const SIGNALS: u64 = 1 << 1;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: libc::c_uint = 1;

/// Those of the rights on files that this version of the interface knows; it refuses others.
pub fn known(abi: u32, files: u64) -> u64 {
    let newer = [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEVICE)];
    newer.iter().filter(|(since, _)| abi < *since).fold(files, |files, (_, right)| files & !right)
}

/// Version of the interface, if there is one.
pub fn abi() -> Option<u32> {
    // SAFETY: this form takes no pointer.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0usize, ASK_VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// What is forbidden: `struct landlock_ruleset_attr`. There are no exceptions.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Ruleset {
    /// Rights on files.
    pub files: u64,
    /// Of TCP sockets.
    pub tcp: u64,
    /// What is cut off from outside.
    pub scoped: u64,
}

impl Ruleset {
    /// How much of the structure older kernels know: they refuse a longer one unless the rest is zero, and take it then.
    const LEN: usize = size_of::<Self>();

    /// Confines the calling thread for good, and those it starts from now on. Sets `no_new_privs`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn enforce(&self) -> io::Result<()> {
        // SAFETY: the structure is valid for the call, and its size is the one given.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *self, Self::LEN, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: just opened by us and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: integers only.
        let outcome = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0)
        };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// On a thread of its own: it stays confined.
    #[test]
    fn what_is_forbidden_is_refused_to_this_thread_and_no_other() {
        let Some(abi) = abi() else {
            println!("skipped: this kernel has no Landlock");
            return;
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let files = known(abi, READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEVICE);
                    Ruleset { files, tcp: if abi >= 4 { BIND_TCP } else { 0 }, scoped: 0 }.enforce().unwrap();
                    assert_eq!(std::fs::read(path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                    if abi >= 4 {
                        assert!(TcpListener::bind("127.0.0.1:0").is_err());
                    }
                })
                .join()
                .unwrap();
        });
        std::fs::read(path).unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap();
    }

    #[test]
    fn older_kernels_are_asked_for_what_they_know() {
        let all = EXECUTE | REFER | TRUNCATE | IOCTL_DEVICE;
        for (abi, expected) in [(1, EXECUTE), (2, EXECUTE | REFER), (4, EXECUTE | REFER | TRUNCATE), (7, all)] {
            assert_eq!(known(abi, all), expected, "{abi}");
        }
    }
}
