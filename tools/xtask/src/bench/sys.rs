//! The system calls the bench needs that std does not have. The only `unsafe` of this crate.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Turns the -1 of a libc call into its errno.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// CPUs a thread may run on. Bit `n` is CPU `n`; the bench never needs more than 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuMask(pub(crate) u64);

impl CpuMask {
    /// What the calling thread may use now.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        // SAFETY: cpu_set_t is plain C data for which all zeroes is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is one cpu_set_t of the size given; 0 means the calling thread.
        checked(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
        // SAFETY: CPU_ISSET reads a bit of `set` that exists: 64 is less than CPU_SETSIZE.
        let mask = (0..64).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
        Ok(Self(mask.fold(0, |mask, cpu| mask | 1 << cpu)))
    }

    /// The `n`th CPU of the mask alone, counted from 0; `None` when there are fewer.
    pub(crate) fn nth(self, n: usize) -> Option<Self> {
        let cpu = (0..64).filter(|cpu| self.0 & (1 << cpu) != 0).nth(n)?;
        Some(Self(1 << cpu))
    }
}

/// Restricts thread `tid` (0: the calling thread) to these CPUs.
pub(crate) fn pin(tid: u32, cpus: CpuMask) -> io::Result<()> {
    let tid = libc::pid_t::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: cpu_set_t is plain C data for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in (0..64).filter(|cpu| cpus.0 & (1 << cpu) != 0) {
        // SAFETY: CPU_SET writes a bit of `set` that exists: 64 is less than CPU_SETSIZE.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is one cpu_set_t of the size given.
    checked(unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// How late this thread's short sleeps may end. A child inherits it, so it is `Usual` when one is started.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sleeps {
    /// As late as the kernel's default allows (50 µs).
    Usual,
    /// As exact as the timer is.
    Exact,
}

/// Sets the calling thread's timer slack.
pub(crate) fn set_sleeps(sleeps: Sleeps) {
    // 0 restores the default (prctl(2)).
    let nanoseconds: libc::c_ulong = match sleeps {
        Sleeps::Usual => 0,
        Sleeps::Exact => 1,
    };
    // SAFETY: PR_SET_TIMERSLACK takes one integer and cannot fail.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanoseconds) };
}

/// Whether the calling user may make network namespaces and taps.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Waits until one of two descriptors is readable (or at its end); which ones are. Both `false`: the time was over.
pub(crate) fn readable(fds: [Option<RawFd>; 2], patience: Duration) -> io::Result<[bool; 2]> {
    let deadline = Instant::now() + patience;
    // A negative descriptor is ignored by poll(2).
    let mut entries = fds.map(|fd| libc::pollfd { fd: fd.unwrap_or(-1), events: libc::POLLIN, revents: 0 });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.as_micros().div_ceil(1000).min(1 << 30) as libc::c_int;
        // SAFETY: `entries` is an array of two pollfd for the length of the call.
        match checked(unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) }) {
            Ok(_) => return Ok(entries.map(|entry| entry.revents != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The time-stamp counter's frequency in kHz, measured against the clock for `during`;
/// `None` on a processor without one.
pub(crate) fn tsc_khz(during: Duration) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: rdtsc is available to user mode on every x86-64 Linux.
        let counter = || unsafe { std::arch::x86_64::_rdtsc() };
        let (before, start) = (counter(), Instant::now());
        while start.elapsed() < during {
            std::hint::spin_loop();
        }
        let (after, elapsed) = (counter(), start.elapsed());
        let cycles = u128::from(after.wrapping_sub(before));
        u64::try_from(cycles * 1_000_000 / elapsed.as_nanos().max(1)).ok()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = during;
        None
    }
}

/// Most frames of one `sendmmsg` call.
pub(crate) const BURST: usize = 32;

/// Sends the same Ethernet frame to an interface again and again, many per system call.
#[derive(Debug)]
pub(crate) struct FrameSender {
    socket: File,
    frame: Vec<u8>,
}

impl FrameSender {
    /// For the interface called `interface` in this thread's network namespace.
    pub(crate) fn new(interface: &str, frame: Vec<u8>) -> io::Result<Self> {
        // Protocol 0: this socket receives nothing.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes three integers.
        let fd = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the kernel just gave us this descriptor and nobody else has it.
        let socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: `name` is a NUL-terminated string for the length of the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sockaddr_ll is plain C data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index.cast_signed();
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a sockaddr_ll of `len` bytes.
        checked(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
        // The queueing discipline is the host's work, not the VMM's: around it.
        let on: libc::c_int = 1;
        // SAFETY: PACKET_QDISC_BYPASS reads one int of the size given.
        checked(unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        })?;
        Ok(Self { socket, frame })
    }

    /// Sends [`BURST`] frames; how many the interface's queue took.
    pub(crate) fn burst(&mut self) -> io::Result<usize> {
        let mut piece = libc::iovec { iov_base: self.frame.as_mut_ptr().cast(), iov_len: self.frame.len() };
        // SAFETY: mmsghdr is plain C data for which all zeroes is a valid (empty) value.
        let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
        for message in &mut messages {
            message.msg_hdr.msg_iov = &raw mut piece;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every message points to `piece`, and that to the frame; the kernel only
        // reads them, and all outlive the call.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), BURST as libc::c_uint, 0) };
        match checked(sent) {
            Ok(sent) => Ok(sent.unsigned_abs() as usize),
            // What a full queue looks like around the queueing discipline.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            Err(error) => Err(error),
        }
    }
}
