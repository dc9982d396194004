//! CPU time of this process, and the host's calendar.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CPU time all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// A moment in local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, such as 2026.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: i32,
    /// Day of the month, 1 to 31.
    pub day: i32,
    /// Hour, 0 to 23.
    pub hour: i32,
    /// Minute, 0 to 59.
    pub minute: i32,
    /// Second, 0 to 60.
    pub second: i32,
    /// Nanosecond, 0 to 999,999,999.
    pub nanosecond: u32,
}

/// `at` in the host's time zone.
pub fn local_time(at: SystemTime) -> LocalTime {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = libc::time_t::try_from(since_epoch.as_secs()).unwrap_or(0);
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call. All zeroes is a valid `tm`, so the value is initialised even if the call fails.
    let parts = unsafe {
        libc::localtime_r(&seconds, parts.as_mut_ptr());
        parts.assume_init()
    };
    LocalTime {
        year: parts.tm_year + 1900,
        month: parts.tm_mon + 1,
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
        nanosecond: since_epoch.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_is_a_calendar_date() {
        let time = local_time(UNIX_EPOCH + Duration::new(1_000_000_000, 7));
        // 2001-09-09 01:46:40 UTC; no zone is more than 14 hours away.
        assert_eq!((time.year, time.month), (2001, 9));
        assert!((8..=9).contains(&time.day));
        assert_eq!((time.second, time.nanosecond), (40, 7));
    }
}
