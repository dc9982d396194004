//! The few system calls the harness needs that std does not have. The only `unsafe` of this crate.

pub mod inject;
pub mod nic;
pub mod uffd;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the -1 of a libc call into its errno.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn milliseconds(patience: Duration) -> libc::c_int {
    // Rounded up, so that a short patience does not become a busy loop.
    patience.as_millis().saturating_add(1).try_into().unwrap_or(libc::c_int::MAX)
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

pub(crate) fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = pid.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes two integers; the caller still owns (has not reaped) the child.
    checked(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// Sends a signal to one thread of a process.
///
/// # Errors
/// There is no such thread.
pub fn signal_thread(pid: u32, tid: u32, signal: i32) -> io::Result<()> {
    let [pid, tid, signal] = [i64::from(pid), i64::from(tid), i64::from(signal)];
    // SAFETY: tgkill takes three integers.
    match unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until the process is over, without reaping it; `false` when `patience` was over first.
pub(crate) fn wait_for_process(pid: u32, patience: Duration) -> bool {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let Ok(fd) = RawFd::try_from(fd) else {
        return false;
    };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
    // A zero patience means a look, not a wait.
    let timeout = if patience.is_zero() { 0 } else { milliseconds(patience) };
    poll_in(pidfd.as_raw_fd(), timeout).unwrap_or(false)
}

pub(crate) fn wait_readable(file: &File, patience: Duration) -> io::Result<bool> {
    poll_in(file.as_raw_fd(), milliseconds(patience))
}

fn poll_in(fd: RawFd, timeout_ms: libc::c_int) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: `entry` is one valid pollfd for the length of the call.
        match checked(unsafe { libc::poll(&raw mut entry, 1, timeout_ms) }) {
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: unshare takes flags only; it changes this thread's namespace, no memory.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(|_| ())
}

/// `struct ifreq` with an interface name in it.
fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain C data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

pub(crate) fn set_tap_persistence(name: &str, multi_queue: bool, persist: bool) -> io::Result<()> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    // Both sides must agree on the header flag when they attach to a persistent tap.
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: TUNSETPERSIST takes an integer.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) })?;
    Ok(())
}

/// A socket only for interface ioctls or frames.
fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    let fd = checked(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn set_interface_up(name: &str) -> io::Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = interface_request(name)?;
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one ifreq.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}

/// An `AF_PACKET` socket bound to one interface, for all protocols.
pub(crate) fn packet_socket(interface: &str) -> io::Result<File> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all))?;
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: `name` is a NUL-terminated string for the length of the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is plain C data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `len` bytes.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(File::from(socket))
}

/// A stream socket of the `AF_VSOCK` family, connected or listening; only inside a guest.
pub mod vsock {
    use super::*;

    /// IOCTL_VM_SOCKETS_GET_LOCAL_CID (include/uapi/linux/vm_sockets.h).
    const GET_LOCAL_CID: u32 = 0x7b9;

    /// The context id of the machine in which this runs.
    pub fn local_cid() -> io::Result<u32> {
        let device = File::open("/dev/vsock")?;
        let mut cid = 0u32;
        // SAFETY: the call writes one u32, which `cid` is.
        checked(unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID as _, &raw mut cid) })?;
        Ok(cid)
    }

    /// Accept from anybody.
    const ANY_CID: u32 = u32::MAX;

    fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
        // SAFETY: all zeroes is a value of this plain C struct.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = cid;
        address.svm_port = port;
        address
    }

    fn socket() -> io::Result<OwnedFd> {
        // SAFETY: socket takes three integers.
        let fd = checked(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

    /// Connects to `port` of `cid` (2 is the host).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect(cid: u32, port: u32) -> io::Result<File> {
        let socket = socket()?;
        let address = address(cid, port);
        // SAFETY: `address` is valid for LEN bytes during the call.
        checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
        Ok(File::from(socket))
    }

    /// Waits for one connection to `port`; `ready` is called as soon as one can come.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn accept(port: u32, ready: impl FnOnce()) -> io::Result<File> {
        let socket = socket()?;
        let address = address(ANY_CID, port);
        // SAFETY: `address` is valid for LEN bytes during the call.
        checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
        // SAFETY: listen and accept4 take integers; the null pointers say that the peer's address is not wanted.
        checked(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
        ready();
        // SAFETY: as above.
        let flags = libc::SOCK_CLOEXEC;
        // SAFETY: as above.
        let fd =
            checked(unsafe { libc::accept4(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })?;
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Says that no more will be sent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish_sending(socket: &File) -> io::Result<()> {
        // SAFETY: shutdown takes two integers.
        checked(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) }).map(|_| ())
    }
}
