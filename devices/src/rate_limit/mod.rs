//! Rate limiters: how many operations and bytes a device may do in a time.
//!
//! [`Bucket`] is arithmetic; [`RateLimiter`] joins one for bytes and one for operations with a timer, which becomes ready when what was
//! refused last can be done. A device asks [`RateLimiter::take`] before it works; after a refusal it stops taking work from its queue and
//! goes on when its loop reports the timer. There is no polling: a limiter that is not blocked has no timer armed.

mod bucket;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

pub use bucket::{Bucket, BucketSpec};

use crate::event::{Interest, Source};

/// Shortest time a limiter sleeps: with a very fast refill it lets through more at once rather than wake for each operation.
const MIN_SLEEP: Duration = Duration::from_millis(1);

/// What a limiter limits; `None` does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes.
    pub bandwidth: Option<BucketSpec>,
    /// Operations.
    pub ops: Option<BucketSpec>,
}

/// A change to one bucket of a running limiter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BucketChange {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is removed.
    Remove,
    /// It is replaced by a full one.
    Set(BucketSpec),
}

/// A change to a running limiter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimitChange {
    /// The bucket of bytes.
    pub bandwidth: BucketChange,
    /// The bucket of operations.
    pub ops: BucketChange,
}

impl RateLimits {
    /// These limits after `change`.
    pub fn changed(self, change: RateLimitChange) -> Self {
        let bucket = |old, change| match change {
            BucketChange::Keep => old,
            BucketChange::Remove => None,
            BucketChange::Set(spec) => Some(spec),
        };
        Self { bandwidth: bucket(self.bandwidth, change.bandwidth), ops: bucket(self.ops, change.ops) }
    }
}

/// Limits operations and bytes.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    timer: TimerFd,
    /// The timer is armed.
    blocked: bool,
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            bandwidth: limits.bandwidth.map(|spec| Bucket::new(spec, now)),
            ops: limits.ops.map(|spec| Bucket::new(spec, now)),
            timer: TimerFd::new().map_err(io::Error::from)?,
            blocked: false,
        })
    }

    /// The timer as a source for the device's [`crate::virtio::device::VirtioDevice::sources`].
    pub fn source(&self, token: u32) -> Source {
        Source { fd: self.timer.as_raw_fd(), interest: Interest::Readable, token }
    }

    /// One operation of `bytes` bytes wants to happen. `false` means not now: [`Self::source`] becomes ready when it can.
    pub fn take(&mut self, bytes: u64) -> bool {
        if self.blocked {
            return false;
        }
        // Without limits, not even the clock is read.
        if self.bandwidth.is_none() && self.ops.is_none() {
            return true;
        }
        let now = Instant::now();
        let bandwidth = self.bandwidth.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(bytes, now));
        let ops = self.ops.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(1, now));
        let wait = bandwidth.max(ops);
        if wait.is_zero() {
            if let Some(bucket) = &mut self.bandwidth {
                bucket.take(bytes);
            }
            if let Some(bucket) = &mut self.ops {
                bucket.take(1);
            }
            return true;
        }
        // The timer can only refuse a time beyond what it can count; such a limiter never lets anything through again.
        self.blocked = self.timer.reset(wait.max(MIN_SLEEP), None).is_ok();
        false
    }

    /// An operation that was let through did not happen after all.
    pub fn give_back(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.give_back(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.give_back(1);
        }
    }

    /// Whether the last operation was refused and the timer has not reported yet.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The event loop reports the timer (or looks at everything after a pause). `true` if the limiter was blocked and no longer is.
    pub fn on_timer(&mut self) -> bool {
        // Spurious looks while the timer still runs cost one refused operation, which arms it again.
        std::mem::take(&mut self.blocked)
    }

    /// Changes the limits. New buckets start full, and what was refused may be tried again.
    pub fn change(&mut self, change: RateLimitChange) {
        let now = Instant::now();
        for (bucket, change) in [(&mut self.bandwidth, change.bandwidth), (&mut self.ops, change.ops)] {
            match change {
                BucketChange::Keep => {}
                BucketChange::Remove => *bucket = None,
                BucketChange::Set(spec) => *bucket = Some(Bucket::new(spec, now)),
            }
        }
        self.blocked = false;
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    fn becomes_ready(limiter: &RateLimiter) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, limiter.source(0).fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
        epoll.wait(5000, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn without_limits_everything_passes() {
        let mut limiter = RateLimiter::new(RateLimits::default()).unwrap();
        assert!((0..1000).all(|_| limiter.take(u64::MAX)));
        assert!(!limiter.is_blocked());
    }

    #[test]
    fn a_refused_operation_can_be_done_when_the_timer_reports() {
        let ops = Some(BucketSpec { size: 2, one_time_burst: 0, refill_ms: 40 });
        let mut limiter = RateLimiter::new(RateLimits { bandwidth: None, ops }).unwrap();
        assert!(limiter.take(1) && limiter.take(1));
        assert!(!limiter.take(1) && limiter.is_blocked());
        assert!(becomes_ready(&limiter), "the timer was not armed");
        assert!(limiter.on_timer() && limiter.take(1));
    }

    #[test]
    fn a_change_starts_full_and_unblocks() {
        let spec = |size| BucketSpec { size, one_time_burst: 0, refill_ms: 3_600_000 };
        let limits = RateLimits { bandwidth: Some(spec(10)), ops: Some(spec(1)) };
        let mut limiter = RateLimiter::new(limits).unwrap();
        assert!(limiter.take(10) && !limiter.take(10));
        let change = RateLimitChange { bandwidth: BucketChange::Set(spec(20)), ops: BucketChange::Remove };
        limiter.change(change);
        assert!(limiter.take(20));
        assert_eq!(limits.changed(change), RateLimits { bandwidth: Some(spec(20)), ops: None });
        assert_eq!(limits.changed(RateLimitChange::default()), limits);
    }
}
