//! Guest memory that another process fills, page by page, when it is missed (userfaultfd(2), include/uapi/linux/userfaultfd.h).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use vm_memory::MmapRegion;
use vm_memory::bitmap::Bitmap;

/// UFFD_API.
const API: u64 = 0xaa;
/// Memory that is given back to the host is told to the handler.
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// Pages that are missing are asked for.
const MODE_MISSING: u64 = 1;
const UFFDIO_API: u32 = 0xc018_aa3f;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const USERFAULTFD_IOC_NEW: u32 = 0xaa00;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// What asks for missing pages.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// One for memory of this process, also where the kernel touches it on a guest's behalf: for that one needs CAP_SYS_PTRACE, the right to
    /// open `/dev/userfaultfd`, or the sysctl `vm.unprivileged_userfaultfd`.
    pub fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let uffd = match File::open("/dev/userfaultfd") {
            // SAFETY: a call without pointers; the argument is passed by value.
            Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) },
            // SAFETY: a call without pointers.
            Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int },
        };
        if uffd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made by us and owned by nobody else.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(uffd) });
        let mut api = Api { api: API, features: FEATURE_EVENT_REMOVE, ioctls: 0 };
        uffd.call(UFFDIO_API, &mut api)?;
        Ok(uffd)
    }

    /// Asks for pages that are missing in this region, from now on.
    pub fn register(&self, region: &MmapRegion<impl Bitmap>) -> io::Result<()> {
        let (start, len) = (region.as_ptr() as u64, region.size() as u64);
        self.call(UFFDIO_REGISTER, &mut Register { start, len, mode: MODE_MISSING, ioctls: 0 })
    }

    fn call<T>(&self, request: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: requests are used with the struct that belongs to them, which the kernel reads and writes.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that becomes readable when the process at the other end of a connection ends. `None` if it is not to be had: the process is
/// in another process namespace, or the kernel is older than 5.3.
pub fn end_of_peer(stream: &UnixStream) -> Option<OwnedFd> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: a struct of the right type and length to write to.
    let told = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    if told != 0 || peer.pid <= 0 {
        return None;
    }
    // SAFETY: a call without pointers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, peer.pid, 0) };
    let pidfd = i32::try_from(pidfd).ok().filter(|pidfd| *pidfd >= 0)?;
    // SAFETY: just made by us and owned by nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(pidfd) })
}
