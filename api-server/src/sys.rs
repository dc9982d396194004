//! The system calls that std does not offer. The only file of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment on the host's local calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// Such as 2026.
    pub(crate) year: i32,
    /// 1 to 12.
    pub(crate) month: i32,
    /// 1 to 31.
    pub(crate) day: i32,
    /// 0 to 23.
    pub(crate) hour: i32,
    /// 0 to 59.
    pub(crate) minute: i32,
    /// 0 to 60 (leap second).
    pub(crate) second: i32,
    /// 0 to 999,999,999.
    pub(crate) nanosecond: u32,
}

/// `at` in the host's time zone.
pub(crate) fn local_time(at: SystemTime) -> LocalTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(0);
    // SAFETY: `tm` is plain data for which all zeroes is a value (its pointer, the zone's name, may be null).
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call and do not overlap. On failure `tm` stays zeroed, which is still readable.
    unsafe { libc::localtime_r(&seconds, &mut tm) };
    LocalTime {
        year: tm.tm_year.saturating_add(1900),
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
        nanosecond: since.subsec_nanos(),
    }
}

/// Whether a write of up to `PIPE_BUF` bytes to `fd` would go through at once.
pub(crate) fn writable_now(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd for the length of the call, which with timeout 0 returns at once.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

/// Runs `action` with these permission bits taken from every file it creates. The umask belongs to the whole process, so this is
/// for the time before other threads exist.
pub(crate) fn with_umask<T>(mask: u32, action: impl FnOnce() -> T) -> T {
    // SAFETY: umask cannot fail and touches no memory of ours.
    let before = unsafe { libc::umask(mask) };
    let outcome = action();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    outcome
}

/// Makes room for `count` file descriptors at once. The kernel copies a growing table and, once threads share it, waits for an RCU
/// grace period each time (fs/file.c, `expand_files`), which costs milliseconds in the middle of a boot.
pub(crate) fn grow_fd_table(fd: BorrowedFd<'_>, count: i32) {
    // SAFETY: duplicating a valid descriptor; a limit below `count` makes the call fail, and then the table just grows later.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count - 1) };
    if high >= 0 {
        // SAFETY: just made by us and owned by nobody else; dropping it closes it.
        drop(unsafe { OwnedFd::from_raw_fd(high) });
    }
}

/// Lets Ctrl-C pass this process by (it still reaches children that were started before).
pub(crate) fn ignore_interrupt() {
    // SAFETY: SIG_IGN installs no handler of ours.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write, pipe};
    use std::os::fd::AsFd;

    #[test]
    fn a_full_pipe_is_not_writable() {
        let (mut reader, mut writer) = pipe().unwrap();
        let block = [0; 4096];
        while writable_now(writer.as_fd()) {
            writer.write_all(&block).unwrap();
        }
        let mut taken = [0; 4096];
        reader.read_exact(&mut taken).unwrap();
        assert!(writable_now(writer.as_fd()));
    }

    #[test]
    fn local_time_is_a_calendar_date() {
        let time = local_time(UNIX_EPOCH + Duration::new(1_000_000_000, 7));
        // 2001-09-09 01:46:40 UTC; no zone is more than 14 hours away.
        assert_eq!((time.year, time.month), (2001, 9));
        assert!((8..=9).contains(&time.day));
        assert_eq!((time.second, time.nanosecond), (40, 7));
    }
}
