//! Rate limiters: how many operations and bytes a device may do in a time.
//!
//! [`Bucket`] is arithmetic; [`RateLimiter`] joins one for bytes and one for operations with a timer, which becomes ready when what was
//! refused last can be done. A device asks [`RateLimiter::take`] before it works; after a refusal it stops taking work from its queue and
//! goes on when its loop reports the timer and [`RateLimiter::on_timer`] says so. There is no polling: a limiter that is not blocked has
//! no timer armed.
//!
//! The limits are changed by a [`LimitDial`], from any thread, without the device's lock: a drive that waits for its file keeps the lock
//! for as long as that takes, and the operator should not have to wait with it. The dial makes the timer report, so that a blocked device
//! asks at once.
//!
//! A device whose queues are served side by side has a limiter for each, and all of them [share](RateLimiter::share) one pair of buckets,
//! behind a lock that is held for no longer than it takes to count: what is let through is exactly what one limiter would let through. One
//! that was refused has its tokens kept for it until its timer reports; otherwise small requests of one queue would take them from under a
//! large one of another for ever.

mod bucket;
mod limits;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// Something was refused, and the timer reports at this time.
    blocked_until: Option<Instant>,
    /// The timer reports though nothing was refused: see [`Self::come_back`].
    coming_back: bool,
    /// How many changes of the limits were heard of.
    heard: u64,
    /// Which of those that share the buckets this is.
    sharer: usize,
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
    /// How often the limits were changed. Written with the lock held; a look without it is enough to see that they were.
    changes: AtomicU64,
    /// There is a limit, likewise.
    limits: AtomicBool,
    desk: Mutex<Desk>,
}

/// Held for no longer than it takes to count, and to set a timer.
#[derive(Debug)]
struct Desk {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    /// One for each sharer.
    timers: Vec<TimerFd>,
    /// The sharer that was refused first. Until its timer reports, what comes in is for it.
    first: Option<(usize, Instant)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits. New buckets start full, and what was refused may be tried again.
    fn change(&self, change: RateLimitChange) -> MutexGuard<'_, Desk> {
        let now = Instant::now();
        let mut desk = self.lock();
        let Desk { bandwidth, ops, first, .. } = &mut *desk;
        for (bucket, change) in [(bandwidth, change.bandwidth), (ops, change.ops)] {
            match change {
                BucketChange::Keep => {}
                BucketChange::Remove => *bucket = None,
                BucketChange::Set(spec) => *bucket = Some(Bucket::new(spec, now)),
            }
        }
        *first = None;
        self.limits.store(desk.bandwidth.is_some() || desk.ops.is_some(), Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
        desk
    }
}

impl Desk {
    fn set_timer(&mut self, sharer: usize, wait: Duration) -> bool {
        self.timers.get_mut(sharer).is_some_and(|timer| timer.reset(wait, None).is_ok())
    }

    /// How long one operation of `bytes` bytes has to wait; zero means now.
    fn wait(&mut self, sharer: usize, bytes: u64, now: Instant) -> Duration {
        let bandwidth = self.bandwidth.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(bytes, now));
        let ops = self.ops.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(1, now));
        let wait = bandwidth.max(ops);
        match self.first {
            // A little later than the first, so that it is.
            Some((who, until)) if who != sharer && now < until => {
                wait.max(until.saturating_duration_since(now).saturating_add(MIN_SLEEP))
            }
            _ => wait,
        }
    }

    fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }
}

impl LimitDial {
    /// Changes the limits. The device heeds them from its next operation on. New buckets start full, and what was refused is tried again.
    pub fn turn(&self, change: RateLimitChange) {
        let mut desk = self.0.change(change);
        for timer in &mut desk.timers {
            // A time this short cannot be refused.
            let _ = timer.reset(AT_ONCE, None);
        }
    }
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        let RateLimits { bandwidth, ops } = limits;
        let desk = Desk {
            bandwidth: bandwidth.map(|spec| Bucket::new(spec, now)),
            ops: ops.map(|spec| Bucket::new(spec, now)),
            timers: vec![TimerFd::new().map_err(io::Error::from)?],
            first: None,
        };
        let shared = Shared {
            changes: AtomicU64::new(0),
            limits: AtomicBool::new(bandwidth.is_some() || ops.is_some()),
            desk: Mutex::new(desk),
        };
        Ok(Self::of(shared.into(), 0))
    }

    fn of(shared: Arc<Shared>, sharer: usize) -> Self {
        Self { blocked_until: None, coming_back: false, heard: 0, sharer, shared }
    }

    /// Another limiter on the same buckets, with a timer of its own; for what the device does at the same time elsewhere.
    pub fn share(&self) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let mut desk = self.shared.lock();
        let sharer = desk.timers.len();
        desk.timers.push(timer);
        drop(desk);
        Ok(Self::of(self.shared.clone(), sharer))
    }

    /// What is left now.
    pub fn save(&self) -> LimiterState {
        let now = Instant::now();
        let save = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.save(now));
        let desk = self.shared.lock();
        LimiterState { bandwidth: save(&desk.bandwidth), ops: save(&desk.ops) }
    }

    /// Goes on with what was left. A limit of which nothing is known stays full.
    pub fn restore(&mut self, state: LimiterState) {
        let now = Instant::now();
        let mut desk = self.shared.lock();
        let Desk { bandwidth, ops, .. } = &mut *desk;
        for (bucket, state) in [(bandwidth, state.bandwidth), (ops, state.ops)] {
            if let (Some(bucket), Some(state)) = (bucket, state) {
                bucket.restore(state, now);
            }
        }
    }

    /// The timer as a source for the device's [`crate::virtio::device::VirtioDevice::sources`].
    pub fn source(&self, token: u32) -> Source {
        let fd = self.shared.lock().timers.get(self.sharer).map_or(-1, AsRawFd::as_raw_fd);
        Source { fd, interest: Interest::Readable, token }
    }

    /// For the device's [`crate::virtio::device::VirtioDevice::limit_dials`].
    pub fn dial(&self) -> LimitDial {
        LimitDial(self.shared.clone())
    }

    /// One operation of `bytes` bytes wants to happen. `false` means not now: [`Self::source`] becomes ready when it can.
    pub fn take(&mut self, bytes: u64) -> bool {
        self.ask(bytes, |desk| desk.charge(bytes))
    }

    /// Whether one operation of `bytes` bytes may happen; takes nothing. `false` as for [`Self::take`].
    pub fn allow(&mut self, bytes: u64) -> bool {
        self.ask(bytes, |_| ())
    }

    fn ask(&mut self, bytes: u64, allowed: impl FnOnce(&mut Desk)) -> bool {
        self.listen();
        if self.is_blocked() {
            return false;
        }
        // Without limits, not even the clock is read.
        if !self.shared.limits.load(Ordering::Acquire) {
            return true;
        }
        let now = Instant::now();
        let mut desk = self.shared.lock();
        let wait = desk.wait(self.sharer, bytes, now);
        let is_first = desk.first.is_none_or(|(who, until)| who == self.sharer || until <= now);
        if wait.is_zero() {
            allowed(&mut desk);
            if is_first {
                desk.first = None;
            }
            return true;
        }
        let wait = wait.clamp(MIN_SLEEP, MAX_SLEEP);
        let until = now.checked_add(wait).unwrap_or(now);
        // The refusal heeds all changes made until now, and a later one sets the timer again.
        self.heard = self.shared.changes.load(Ordering::Acquire);
        self.coming_back = false;
        if desk.set_timer(self.sharer, wait) {
            self.blocked_until = Some(until);
            if is_first && desk.timers.len() > 1 {
                desk.first = Some((self.sharer, until));
            }
        }
        false
    }

    /// Hears of a change of the limits: what was refused may be tried again.
    fn listen(&mut self) {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if changes != self.heard {
            self.heard = changes;
            self.blocked_until = None;
        }
    }

    /// Takes tokens for one operation that was allowed. Its size may have become known only then: what is not there is owed, and the
    /// refill pays it off before anything else is allowed.
    pub fn charge(&mut self, bytes: u64) {
        if self.shared.limits.load(Ordering::Acquire) {
            self.shared.lock().charge(bytes);
        }
    }

    /// An operation that was charged did not happen after all.
    pub fn give_back(&mut self, bytes: u64) {
        if !self.shared.limits.load(Ordering::Acquire) {
            return;
        }
        let mut desk = self.shared.lock();
        if let Some(bucket) = &mut desk.bandwidth {
            bucket.give_back(bytes);
        }
        if let Some(bucket) = &mut desk.ops {
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
        self.listen();
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
            self.coming_back = self.shared.lock().set_timer(self.sharer, AT_ONCE);
        }
    }

    /// Changes the limits, for whoever has the device in hand. New buckets start full, and what was refused may be tried again.
    pub fn change(&mut self, change: RateLimitChange) {
        drop(self.shared.change(change));
        self.listen();
    }
}

#[cfg(test)]
mod tests;
