//! A token bucket: pure arithmetic, told what time it is.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A bucket as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSpec {
    /// Tokens in a full bucket, at least 1.
    pub size: u64,
    /// Tokens that may be used once on top of that; they are never refilled.
    pub one_time_burst: u64,
    /// Time in which an empty bucket becomes full, at least 1 ms.
    pub refill_ms: u64,
}

/// What is left in a bucket in use, in whole tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketState {
    /// Of the one-time burst.
    pub burst: u64,
    /// In the bucket; negative is a debt.
    pub level: i64,
}

/// A bucket in use.
///
/// A request larger than the bucket could never be served from a full one. It is let through as soon as the bucket is full and leaves a
/// debt that the refill pays off first, so the rate holds over time.
#[derive(Debug, Clone)]
pub struct Bucket {
    spec: BucketSpec,
    burst: u64,
    /// Tokens in the bucket; negative is a debt. In units of 1/`refill_ns` tokens, so that no fraction is lost between two refills.
    level: i128,
    refilled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(spec: BucketSpec, now: Instant) -> Self {
        let mut bucket = Self { spec, burst: spec.one_time_burst, level: 0, refilled: now };
        bucket.level = bucket.full();
        bucket
    }

    /// What is left now.
    pub fn save(&self, now: Instant) -> BucketState {
        let mut bucket = self.clone();
        bucket.refill(now);
        let tokens = bucket.level.div_euclid(bucket.refill_ns().max(1));
        let bound = i128::from(i64::MAX);
        BucketState { burst: bucket.burst, level: i64::try_from(tokens.clamp(-bound, bound)).unwrap_or(0) }
    }

    /// Goes on with what was left. No more than fits is taken for true, and no debt larger than one that a full bucket pays off.
    pub fn restore(&mut self, state: BucketState, now: Instant) {
        self.burst = state.burst.min(self.spec.one_time_burst);
        self.level =
            i128::from(state.level).saturating_mul(self.refill_ns()).clamp(self.full().saturating_neg(), self.full());
        self.refilled = now;
    }

    /// As configured.
    pub fn spec(&self) -> BucketSpec {
        self.spec
    }

    /// Nanoseconds in which the bucket fills; also the number of units in a token.
    fn refill_ns(&self) -> i128 {
        i128::from(self.spec.refill_ms.max(1)).saturating_mul(1_000_000)
    }

    fn units(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(self.refill_ns())
    }

    fn full(&self) -> i128 {
        self.units(self.spec.size)
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        self.refilled = now;
        // `size` units arrive each nanosecond: the bucket's `size * refill_ns` units in `refill_ns`.
        let gained = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(self.spec.size.into());
        self.level = self.level.saturating_add(gained).min(self.full());
    }

    /// How long until `tokens` may be taken; zero means now.
    pub fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        let beyond_burst = tokens.saturating_sub(self.burst);
        if beyond_burst == 0 {
            return Duration::ZERO;
        }
        self.refill(now);
        let needed = self.units(beyond_burst.min(self.spec.size));
        let missing = needed.saturating_sub(self.level).max(0);
        let size = i128::from(self.spec.size.max(1));
        let ns = missing.checked_add(size.saturating_sub(1)).and_then(|up| up.checked_div(size)).unwrap_or(i128::MAX);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Takes tokens for which [`Self::wait`] was zero.
    pub fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst = self.burst.saturating_sub(from_burst);
        self.level = self.level.saturating_sub(self.units(tokens.saturating_sub(from_burst)));
    }

    /// Takes as many of `tokens` as there are; says how many that was.
    pub fn take_up_to(&mut self, tokens: u64, now: Instant) -> u64 {
        self.refill(now);
        let whole = self.level.checked_div(self.refill_ns()).unwrap_or(0).max(0);
        let held = self.burst.saturating_add(u64::try_from(whole).unwrap_or(u64::MAX));
        let taken = tokens.min(held);
        self.take(taken);
        taken
    }

    /// Gives back tokens that were taken for something that was not done after all.
    pub fn give_back(&mut self, tokens: u64) {
        self.level = self.level.saturating_add(self.units(tokens)).min(self.full());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(size: u64, one_time_burst: u64, refill_ms: u64) -> BucketSpec {
        BucketSpec { size, one_time_burst, refill_ms }
    }

    #[test]
    fn a_full_bucket_empties_and_refills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(spec(10, 5, 100), start);
        assert!(bucket.wait(15, start).is_zero());
        bucket.take(15);
        assert_eq!(bucket.wait(1, start), Duration::from_millis(10));
        assert!(bucket.wait(1, start + Duration::from_millis(10)).is_zero());
        // The burst does not come back.
        assert_eq!(bucket.wait(10, start + Duration::from_secs(9)), Duration::ZERO);
        bucket.take(10);
        assert_eq!(bucket.wait(10, start + Duration::from_secs(9)), Duration::from_millis(100));
    }

    #[test]
    fn a_request_larger_than_the_bucket_leaves_a_debt() {
        let start = Instant::now();
        let mut bucket = Bucket::new(spec(10, 0, 100), start);
        assert!(bucket.wait(35, start).is_zero());
        bucket.take(35);
        assert_eq!(bucket.wait(1, start), Duration::from_millis(260));
    }

    #[test]
    fn what_is_there_can_be_taken_without_waiting() {
        let start = Instant::now();
        let mut bucket = Bucket::new(spec(10, 5, 100), start);
        assert_eq!(bucket.take_up_to(12, start), 12);
        assert_eq!(bucket.take_up_to(12, start), 3);
        assert_eq!(bucket.take_up_to(12, start), 0);
        // A token takes 10 ms; half of one is none, but is not lost.
        assert_eq!(bucket.take_up_to(12, start + Duration::from_millis(25)), 2);
        assert_eq!(bucket.take_up_to(12, start + Duration::from_millis(30)), 1);
        bucket.take(20);
        assert_eq!(bucket.take_up_to(1, start + Duration::from_millis(100)), 0, "a debt comes first");
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let start = Instant::now();
        let mut bucket = Bucket::new(spec(u64::MAX, u64::MAX, u64::MAX), start);
        for _ in 0..3 {
            bucket.wait(u64::MAX, start + Duration::from_secs(1 << 30));
            bucket.take(u64::MAX);
            bucket.take_up_to(u64::MAX, start + Duration::from_secs(1 << 31));
        }
        let mut slow = Bucket::new(spec(1, 0, u64::MAX), start);
        slow.take(1);
        assert!(slow.wait(1, start) > Duration::from_secs(1 << 30));
    }

    proptest! {
        /// Whatever is asked for and whenever: over any time no more is let through than bucket, burst, refill and one oversized request.
        #[test]
        fn the_rate_holds(
            size in 1u64..1000, burst in 0u64..1000, refill_ms in 1u64..1000,
            asks in proptest::collection::vec((0u64..2000, 0u64..50_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(spec(size, burst, refill_ms), start);
            let mut now = start;
            let (mut taken, mut largest) = (0u128, 0u64);
            for (tokens, pause_ns) in asks {
                now += Duration::from_nanos(pause_ns);
                if bucket.wait(tokens, now).is_zero() {
                    bucket.take(tokens);
                    taken += u128::from(tokens);
                    largest = largest.max(tokens);
                }
            }
            let elapsed = (now - start).as_nanos();
            let refilled = elapsed * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
            prop_assert!(taken <= u128::from(size) + u128::from(burst) + refilled + u128::from(largest) + 1);
        }

        /// Who waits as long as told gets what was asked for.
        #[test]
        fn waiting_is_enough(size in 1u64..1_000_000, refill_ms in 1u64..100_000, tokens in proptest::collection::vec(1u64..1_000_000, 1..50)) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(spec(size, 0, refill_ms), now);
            for ask in tokens {
                now += bucket.wait(ask, now);
                prop_assert!(bucket.wait(ask, now).is_zero());
                bucket.take(ask);
            }
        }
    }
}
