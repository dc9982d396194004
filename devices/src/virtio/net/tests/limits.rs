//! Rate limits of both directions, with the card's own timers.

use std::time::{Duration, Instant};

use super::*;
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange};
use crate::sys::nonblocking;

fn bucket(size: u64, refill_ms: u64) -> Option<BucketSpec> {
    Some(BucketSpec { size, one_time_burst: 0, refill_ms })
}

/// Never refilled within a test.
fn once(size: u64) -> Option<BucketSpec> {
    bucket(size, 3_600_000)
}

const NONE: RateLimits = RateLimits { bandwidth: None, ops: None };

fn ops(ops: Option<BucketSpec>) -> RateLimits {
    RateLimits { bandwidth: None, ops }
}

fn bytes(bandwidth: Option<BucketSpec>) -> RateLimits {
    RateLimits { bandwidth, ops: None }
}

impl Bench {
    fn limited(rx: RateLimits, tx: RateLimits) -> Self {
        let mut bench = Self::of(open_limited(rx, tx), MERGEABLE, 256, false);
        for _ in 0..100 {
            bench.offer(BUFFER_LEN);
        }
        bench
    }

    /// Offers a frame without looking at what becomes of it.
    fn submit(&mut self, frame: &[u8], slot: u64) {
        let addr = OUT + slot * 0x1000;
        self.driver.ram.write_slice(&[&[0; HEADER_LEN][..], frame].concat(), GuestAddress(addr)).unwrap();
        let len = (HEADER_LEN + frame.len()) as u32;
        self.driver.offer(1, &[Buffer { addr, len, writable: false }]);
    }

    /// What the event loop does when the source reports; fails if it does not.
    fn await_source(&mut self, token: u32) {
        let source = self.net.sources().into_iter().find(|source| source.token == token).unwrap();
        assert!(nonblocking::wait(source.fd, libc::POLLIN, 10_000).unwrap(), "source {token} stays silent");
        self.net.on_source(token, &mut self.rings).unwrap();
    }

    fn sent(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.take_used(1)).count()
    }

    fn arrived(&mut self) -> usize {
        std::iter::from_fn(|| self.received()).count()
    }
}

#[test]
fn sending_waits_for_the_timer() {
    // Ten milliseconds a frame, or the time in which 100 bytes trickle in.
    for limits in [ops(bucket(4, 40)), bytes(bucket(400, 40))] {
        let mut bench = Bench::limited(NONE, limits);
        let metrics = bench.net.metrics();
        let started = Instant::now();
        for i in 0..12 {
            bench.submit(&frame(100, i), i.into());
        }
        bench.tx_doorbell();
        let (mut sent, mut turns) = (bench.sent(), 0);
        assert!((4..12).contains(&sent), "{sent} frames at once");
        while sent < 12 {
            // Doorbells meanwhile change nothing.
            bench.tx_doorbell();
            bench.await_source(TX_LIMITER);
            sent += bench.sent();
            turns += 1;
        }
        assert!(started.elapsed() >= Duration::from_millis(80), "too fast: {:?}", started.elapsed());
        assert!(turns <= 8, "one timer for each frame at most, not {turns}");
        for i in 0..12 {
            assert_eq!(bench.peer.receive().unwrap().1, frame(100, i), "in order");
        }
        assert_eq!(metrics.tx_rate_limiter_event_count.get(), turns);
        assert!(metrics.tx_rate_limiter_throttled.get() >= turns);
        assert_eq!((metrics.tx_packets_count.get(), metrics.rx_rate_limiter_throttled.get()), (12, 0));
    }
}

#[test]
fn receiving_waits_for_the_timer() {
    for limits in [ops(bucket(4, 40)), bytes(bucket(400, 40))] {
        let mut bench = Bench::limited(limits, NONE);
        let metrics = bench.net.metrics();
        let started = Instant::now();
        for i in 0..12 {
            bench.peer.send(PLAIN, &frame(100, i)).unwrap();
        }
        bench.tap_event();
        let mut turns = 0;
        let mut got = Vec::new();
        loop {
            got.extend(std::iter::from_fn(|| bench.received()));
            if got.len() >= 12 {
                break;
            }
            bench.tap_event();
            bench.rx_doorbell();
            bench.await_source(RX_LIMITER);
            turns += 1;
        }
        // All but the first four, and the bytes that the last one owes.
        assert!(started.elapsed() >= Duration::from_millis(70), "too fast: {:?}", started.elapsed());
        assert!(turns <= 8, "one timer for each frame at most, not {turns}");
        for (i, (_, got)) in (0..).zip(&got) {
            assert_eq!(*got, frame(100, i));
        }
        assert_eq!(metrics.rx_event_rate_limiter_count.get(), turns);
        assert!(metrics.rx_rate_limiter_throttled.get() >= turns);
        // The other direction is free.
        for i in 0..12 {
            bench.submit(&frame(100, i), i.into());
        }
        bench.tx_doorbell();
        assert_eq!(bench.sent(), 12);
    }
}

#[test]
fn a_frame_larger_than_the_bucket_passes_and_is_paid_for() {
    let mut bench = Bench::limited(bytes(once(1000)), bytes(once(1000)));
    for i in 0..2 {
        bench.peer.send(PLAIN, &frame(1400, i)).unwrap();
        bench.submit(&frame(1400, i), i.into());
    }
    bench.tap_event();
    bench.tx_doorbell();
    assert_eq!((bench.arrived(), bench.sent()), (1, 1));
}

#[test]
fn what_is_no_frame_counts_as_one() {
    let mut bench = Bench::limited(NONE, ops(once(3)));
    for slot in 0..3 {
        bench.submit(&[], slot);
    }
    // Nor does a chain of gigabytes, which is dropped, owe gigabytes.
    bench.submit(&frame(60, 1), 3);
    bench.tx_doorbell();
    assert_eq!((bench.sent(), bench.net.metrics().tx_malformed_frames.get()), (3, 3));

    let mut bench = Bench::limited(NONE, bytes(bucket(1 << 20, 1000)));
    let piece = Buffer { addr: TestDriver::FREE, len: 4 << 20, writable: false };
    bench.driver.offer(1, &[piece; 128]);
    bench.submit(&frame(60, 1), 0);
    bench.tx_doorbell();
    assert_eq!(bench.sent(), 2);
}

#[test]
fn a_turned_dial_lets_go() {
    let mut bench = Bench::limited(ops(once(1)), ops(once(1)));
    for i in 0..8 {
        bench.peer.send(PLAIN, &frame(100, i)).unwrap();
        bench.submit(&frame(100, i), i.into());
    }
    bench.tap_event();
    bench.tx_doorbell();
    assert_eq!((bench.arrived(), bench.sent()), (1, 1));
    let [rx, tx] = &bench.net.limit_dials()[..] else { panic!("a dial for each direction") };
    let set = |ops| RateLimitChange { bandwidth: BucketChange::Keep, ops };
    rx.turn(set(BucketChange::Set(once(3).unwrap())));
    tx.turn(set(BucketChange::Remove));
    bench.await_source(RX_LIMITER);
    bench.await_source(TX_LIMITER);
    assert_eq!((bench.arrived(), bench.sent()), (3, 7));
}

/// A reset is no way around a limit, and what was on its way when it came is forgotten.
#[test]
fn a_reset_neither_refills_nor_remembers() {
    let mut bench = Bench::limited(ops(bucket(1, 60)), ops(bucket(1, 60)));
    for i in 0..2 {
        bench.peer.send(PLAIN, &frame(100, i)).unwrap();
        bench.submit(&frame(100, i), i.into());
    }
    bench.tap_event();
    bench.tx_doorbell();
    assert_eq!((bench.arrived(), bench.sent()), (1, 1));
    bench.net.reset();
    bench.offered.clear();
    bench.driver = TestDriver::new(2, 256);
    bench.rings = bench.driver.rings(false, true);
    bench.net.activate(MERGEABLE, &mut bench.rings).unwrap();
    bench.offer(BUFFER_LEN);
    bench.submit(&frame(100, 7), 0);
    bench.rx_doorbell();
    bench.tx_doorbell();
    assert_eq!((bench.arrived(), bench.sent()), (0, 0), "the tokens did not come back");
    bench.await_source(RX_LIMITER);
    bench.await_source(TX_LIMITER);
    assert_eq!((bench.arrived(), bench.sent()), (1, 1));
    assert_eq!(bench.peer.receive().unwrap().1, frame(100, 0));
    assert_eq!(bench.peer.receive().unwrap().1, frame(100, 7));
    assert!(bench.peer.receive().is_none());
}

#[test]
fn quiescing_while_throttled_keeps_nothing_back() {
    let mut bench = Bench::limited(ops(bucket(1, 40)), NONE);
    for i in 0..3 {
        bench.peer.send(PLAIN, &frame(100, i)).unwrap();
    }
    bench.tap_event();
    assert_eq!(bench.arrived(), 1);
    bench.net.quiesce(&mut bench.rings).unwrap();
    assert_eq!(bench.net.rx.holds(), (0, 0));
    for i in 1..3 {
        bench.await_source(RX_LIMITER);
        assert_eq!(bench.received().unwrap().1, frame(100, i));
    }
}

#[test]
fn long_work_after_a_wait_is_done_in_several_visits() {
    let mut bench = Bench::limited(NONE, ops(once(1)));
    for i in 0..=200u64 {
        bench.submit(&frame(60, i as u8), i % 200);
    }
    bench.tx_doorbell();
    assert_eq!(bench.sent(), 1);
    bench.net.limit_dials()[1].turn(RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Remove });
    bench.await_source(TX_LIMITER);
    assert_eq!(bench.sent(), MAX_FRAMES_PER_VISIT as usize);
    bench.await_source(TX_LIMITER);
    assert_eq!(bench.sent(), 200 - MAX_FRAMES_PER_VISIT as usize);
}
