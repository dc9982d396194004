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
const UFFDIO_WAKE: u32 = 0x8010_aa02;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u32 = 0xc020_aa04;
/// UFFD_EVENT_PAGEFAULT.
const EVENT_PAGEFAULT: u8 = 0x12;
/// UFFD_PAGEFAULT_FLAG_WRITE.
const FAULT_WRITE: u64 = 1;
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

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Default)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Default)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// Somebody waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// An address in it.
    pub address: u64,
    /// To write to it.
    pub write: bool,
}

/// Who hears of memory that is given back to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removals {
    /// The handler, and whoever gives it back waits for it.
    Told,
    /// Nobody: such pages are missing again.
    Untold,
}

/// What asks for missing pages.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// One for memory of this process, also where the kernel touches it on a guest's behalf: for that one needs CAP_SYS_PTRACE, the right to
    /// open `/dev/userfaultfd`, or the sysctl `vm.unprivileged_userfaultfd`.
    pub fn new(removals: Removals) -> io::Result<Self> {
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
        let features = if removals == Removals::Told { FEATURE_EVENT_REMOVE } else { 0 };
        let mut api = Api { api: API, features, ioctls: 0 };
        uffd.call(UFFDIO_API, &mut api)?;
        Ok(uffd)
    }

    /// Asks for pages that are missing in this region, from now on.
    pub fn register(&self, region: &MmapRegion<impl Bitmap>) -> io::Result<()> {
        let (start, len) = (region.as_ptr() as u64, region.size() as u64);
        self.call(UFFDIO_REGISTER, &mut Register { start, len, mode: MODE_MISSING, ioctls: 0 })
    }

    /// The next page that somebody waits for. `None` if nobody does.
    pub fn next_fault(&self) -> io::Result<Option<Fault>> {
        loop {
            // `struct uffd_msg`: what it is about in the first byte; of a fault flags and address from the eighth on.
            let mut message = [0u64; 4];
            // SAFETY: as many bytes to write to as are said.
            let count = unsafe { libc::read(self.0.as_raw_fd(), message.as_mut_ptr().cast(), size_of_val(&message)) };
            if count < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            let [event, flags, address, _] = message;
            if event.to_le_bytes().first() == Some(&EVENT_PAGEFAULT) {
                return Ok(Some(Fault { address, write: flags & FAULT_WRITE != 0 }));
            }
        }
    }

    /// Puts a page where it is missing, and wakes who waits for it. It may have got there otherwise, or need not be there any more.
    pub fn give(&self, at: u64, page: &[u8]) -> io::Result<()> {
        let len = page.len() as u64;
        let from = page.as_ptr() as u64;
        self.put(at, len, || self.call(UFFDIO_COPY, &mut Copy { to: at, from, len, mode: 0, copied: 0 }))
    }

    /// The same with zeroes.
    pub fn give_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        let range = || Range { start: at, len };
        self.put(at, len, || self.call(UFFDIO_ZEROPAGE, &mut ZeroPage { range: range(), mode: 0, zeroed: 0 }))
    }

    fn put(&self, at: u64, len: u64, call: impl Fn() -> io::Result<()>) -> io::Result<()> {
        loop {
            let Err(error) = call() else { return Ok(()) };
            match error.raw_os_error() {
                // The mappings of the process are being changed.
                Some(libc::EAGAIN) => {}
                Some(libc::EEXIST) => return self.call(UFFDIO_WAKE, &mut Range { start: at, len }),
                // Unmapped meanwhile.
                Some(libc::ENOENT | libc::ESRCH) => return Ok(()),
                _ => return Err(error),
            }
        }
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
