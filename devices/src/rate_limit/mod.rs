//! Rate limiters: how many operations and bytes a device may do in a time.
//!
//! [`Bucket`] is arithmetic; [`RateLimiter`] joins one for bytes and one for operations with a timer, which becomes ready when what was
//! refused last can be done. A device asks [`RateLimiter::take`] before it works; after a refusal it stops taking work from its queue and
//! goes on when its loop reports the timer and [`RateLimiter::on_timer`] says so. There is no polling: a limiter that is not blocked has
//! no timer armed.
//!
//! The limits are changed by a [`LimitDial`], from any thread, without the device's lock: a drive that waits for its file keeps the lock
//! for as long as that takes, and the operator should not have to wait with it. The limiter looks for a change when it is asked next, and
//! the dial makes the timer report so that a blocked device asks at once.

mod bucket;
mod limits;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

pub use bucket::{Bucket, BucketSpec, BucketState};
pub use limits::{BucketChange, RateLimitChange, RateLimits};

use crate::event::{Interest, Source};

/// Shortest time a limiter sleeps: with a very fast refill it lets through more at once rather than wake for each operation.
const MIN_SLEEP: Duration = Duration::from_millis(1);
/// Longest time: then it looks again. Keeps the arithmetic of points in time from overflowing.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// A timer that reports as soon as it can. Zero would stop it.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// Limits operations and bytes.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    /// Something was refused, and the timer reports at this time.
    blocked_until: Option<Instant>,
    /// The timer reports though nothing was refused: see [`Self::come_back`].
    coming_back: bool,
    shared: Arc<Shared>,
}

/// What is left of a limiter's tokens. The limits themselves are configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterState {
    /// Bytes.
    pub bandwidth: Option<BucketState>,
    /// Operations.
    pub ops: Option<BucketState>,
}

/// Changes the limits of a running device from any thread, without waiting for it.
#[derive(Debug, Clone)]
pub struct LimitDial(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// There is a change. Written with the lock held; a look without it is enough to see that there is none.
    turned: AtomicBool,
    desk: Mutex<Desk>,
}

/// Held for no longer than it takes to set a timer.
#[derive(Debug)]
struct Desk {
    timer: TimerFd,
    /// What the limiter has not adopted yet.
    change: RateLimitChange,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_turned(&self) -> bool {
        self.turned.load(Ordering::Acquire)
    }
}

impl LimitDial {
    /// Changes the limits. The device heeds them from its next operation on. New buckets start full, and what was refused is tried again.
    pub fn turn(&self, change: RateLimitChange) {
        let mut desk = self.0.lock();
        desk.change = desk.change.then(change);
        self.0.turned.store(true, Ordering::Release);
        // A time this short cannot be refused.
        let _ = desk.timer.reset(AT_ONCE, None);
    }
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self {
            bandwidth: limits.bandwidth.map(|spec| Bucket::new(spec, now)),
            ops: limits.ops.map(|spec| Bucket::new(spec, now)),
            blocked_until: None,
            coming_back: false,
            shared: Arc::new(Shared {
                turned: AtomicBool::new(false),
                desk: Mutex::new(Desk { timer, change: RateLimitChange::default() }),
            }),
        })
    }

    /// What is left now. A change by the dial that was not adopted yet starts with full buckets.
    pub fn save(&self) -> LimiterState {
        let now = Instant::now();
        let save = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.save(now));
        if self.shared.is_turned() {
            return LimiterState::default();
        }
        LimiterState { bandwidth: save(&self.bandwidth), ops: save(&self.ops) }
    }

    /// Goes on with what was left. A limit of which nothing is known stays full.
    pub fn restore(&mut self, state: LimiterState) {
        let now = Instant::now();
        for (bucket, state) in [(&mut self.bandwidth, state.bandwidth), (&mut self.ops, state.ops)] {
            if let (Some(bucket), Some(state)) = (bucket, state) {
                bucket.restore(state, now);
            }
        }
    }

    /// The timer as a source for the device's [`crate::virtio::device::VirtioDevice::sources`].
    pub fn source(&self, token: u32) -> Source {
        Source { fd: self.shared.lock().timer.as_raw_fd(), interest: Interest::Readable, token }
    }

    /// For the device's [`crate::virtio::device::VirtioDevice::limit_dials`].
    pub fn dial(&self) -> LimitDial {
        LimitDial(self.shared.clone())
    }

    /// One operation of `bytes` bytes wants to happen. `false` means not now: [`Self::source`] becomes ready when it can.
    pub fn take(&mut self, bytes: u64) -> bool {
        let allowed = self.allow(bytes);
        if allowed {
            self.charge(bytes);
        }
        allowed
    }

    /// Whether one operation of `bytes` bytes may happen; takes nothing. `false` as for [`Self::take`].
    pub fn allow(&mut self, bytes: u64) -> bool {
        if self.shared.is_turned() {
            self.adopt();
        }
        if self.is_blocked() {
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
        if !wait.is_zero() {
            self.block(now, wait.clamp(MIN_SLEEP, MAX_SLEEP));
        }
        wait.is_zero()
    }

    /// Takes tokens for one operation that was allowed. Its size may have become known only then: what is not there is owed, and the
    /// refill pays it off before anything else is allowed.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }

    /// An operation that was charged did not happen after all.
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
        self.blocked_until.is_some()
    }

    /// The event loop reports the timer (or looks at everything after a pause). `true` if there is work again: what was refused can be
    /// tried, or [`Self::come_back`] was asked for.
    pub fn on_timer(&mut self) -> bool {
        let mut again = std::mem::take(&mut self.coming_back);
        let was_blocked = self.is_blocked();
        if self.shared.is_turned() {
            self.adopt();
        }
        // A look that comes early leaves the timer running.
        if self.blocked_until.is_some_and(|until| Instant::now() >= until) {
            self.blocked_until = None;
        }
        again |= was_blocked;
        again && !self.is_blocked()
    }

    /// Makes the timer report though nothing was refused, so that the device is visited again after others had their turn.
    pub fn come_back(&mut self) {
        if !self.is_blocked() {
            self.coming_back = self.shared.lock().timer.reset(AT_ONCE, None).is_ok();
        }
    }

    fn block(&mut self, now: Instant, wait: Duration) {
        let mut desk = self.shared.lock();
        self.coming_back = false;
        // A dial that was turned just now has set the timer, and must be heard.
        if self.shared.is_turned() {
            self.blocked_until = Some(now);
        } else if desk.timer.reset(wait, None).is_ok() {
            self.blocked_until = Some(now.checked_add(wait).unwrap_or(now));
        }
    }

    /// Takes over what the dial says.
    fn adopt(&mut self) {
        let mut desk = self.shared.lock();
        self.shared.turned.store(false, Ordering::Release);
        let change = std::mem::take(&mut desk.change);
        drop(desk);
        self.change(change);
    }

    /// Changes the limits, for whoever has the device in hand. New buckets start full, and what was refused may be tried again.
    pub fn change(&mut self, change: RateLimitChange) {
        let now = Instant::now();
        for (bucket, change) in [(&mut self.bandwidth, change.bandwidth), (&mut self.ops, change.ops)] {
            match change {
                BucketChange::Keep => {}
                BucketChange::Remove => *bucket = None,
                BucketChange::Set(spec) => *bucket = Some(Bucket::new(spec, now)),
            }
        }
        self.blocked_until = None;
    }
}

#[cfg(test)]
mod tests;
