//! Clocks, and the host's calendar.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CPU time all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    time_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The clock that callers measure our start with: since the host booted, without jumps.
pub fn monotonic_time() -> Duration {
    time_of(libc::CLOCK_MONOTONIC)
}

fn time_of(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the call; both clocks always exist.
    unsafe { libc::clock_gettime(clock, &mut now) };
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

/// Seconds that local time was ahead of UTC when it was last asked for.
static AHEAD_S: AtomicI64 = AtomicI64::new(0);

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
    AHEAD_S.store(parts.tm_gmtoff, Ordering::Relaxed);
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

/// `at` in the time zone as it was at the last call of [`local_time`]. Safe in signal handlers, which localtime_r(3) is not.
pub fn local_time_lock_free(at: SystemTime) -> LocalTime {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(0).saturating_add(AHEAD_S.load(Ordering::Relaxed));
    let (days, of_day) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
    let (year, month, day) = calendar_date(days);
    let of_day = of_day as i32;
    LocalTime {
        year,
        month,
        day,
        hour: of_day / 3600,
        minute: of_day / 60 % 60,
        second: of_day % 60,
        nanosecond: since_epoch.subsec_nanos(),
    }
}

const DAY_S: i64 = 24 * 60 * 60;

/// The Gregorian date of a day, counted from 1970-01-01.
fn calendar_date(days: i64) -> (i32, i32, i32) {
    let is_leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    // 400 years are always as long; what is left is at most that, so the loops are short.
    const ERA_DAYS: i64 = 146_097;
    let mut year = 1970 + 400 * days.div_euclid(ERA_DAYS);
    let mut day = days.rem_euclid(ERA_DAYS);
    loop {
        let len = if is_leap(year) { 366 } else { 365 };
        if day < len {
            break;
        }
        day -= len;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < len {
            break;
        }
        day -= len;
        month += 1;
    }
    (year as i32, month, day as i32 + 1)
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

    #[test]
    fn both_calendars_agree() {
        for at in [0, 951_782_400, 951_868_799, 1_000_000_000, 1_709_210_096, 4_107_542_399, 7_258_118_400] {
            let at = UNIX_EPOCH + Duration::new(at, 7);
            assert_eq!(local_time(at), local_time_lock_free(at));
        }
        assert_eq!(calendar_date(-1), (1969, 12, 31));
        assert_eq!(calendar_date(11_016), (2000, 2, 29));
    }
}
