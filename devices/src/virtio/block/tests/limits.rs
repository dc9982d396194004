//! Rate limits, with the drive's own timer.

use std::time::{Duration, Instant};

use super::rig::*;
use super::with_engines;
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};
use crate::virtio::block::Engine;
use crate::virtio::test_driver::Buffer;

const LEN: u32 = 4096;

fn bucket(size: u64, refill_ms: u64) -> Option<BucketSpec> {
    Some(BucketSpec { size, one_time_burst: 0, refill_ms })
}

/// Never refilled within a test.
fn once(size: u64) -> Option<BucketSpec> {
    bucket(size, 3_600_000)
}

fn ops(ops: Option<BucketSpec>) -> RateLimits {
    RateLimits { bandwidth: None, ops }
}

fn bytes(bandwidth: Option<BucketSpec>) -> RateLimits {
    RateLimits { bandwidth, ops: None }
}

fn lift() -> RateLimitChange {
    RateLimitChange { bandwidth: BucketChange::Remove, ops: BucketChange::Remove }
}

fn limited(engine: Engine, limits: RateLimits) -> Rig {
    Rig::new(disk_of(&pattern(40, 1 << 20)), engine, Options { limits, ..Options::default() })
}

impl Rig {
    /// Makes reads (type 0) or whatever available without ringing.
    fn line_up(&mut self, count: u64, kind: u32) {
        for i in 0..count {
            let at = self.place();
            let mut buffers = vec![self.header(at, kind, if kind == 4 { 0 } else { i * 8 })];
            if kind != 4 {
                buffers.push(Buffer { addr: at + 0x1000, len: LEN, writable: kind == 0 });
            }
            buffers.push(self.status_at(at + 16));
            self.offer(&buffers, at + 16);
        }
    }

    /// Answers that are there.
    fn answered(&mut self) -> usize {
        self.events.settle();
        std::iter::from_fn(|| self.driver.take_used(0)).count()
    }
}

#[test]
fn requests_wait_for_the_timer() {
    with_engines(|engine| {
        for (limits, kind) in [
            (ops(bucket(4, 40)), 0),
            (ops(bucket(4, 40)), 4),
            // Nonsense is not free.
            (ops(bucket(4, 40)), 99),
            (bytes(bucket(4 * u64::from(LEN), 40)), 1),
        ] {
            let mut rig = limited(engine(), limits);
            let started = Instant::now();
            rig.line_up(12, kind);
            rig.kick();
            let (mut answered, mut turns) = (0, 0);
            while answered < 12 {
                assert!(rig.events.turn(10_000), "nothing happens any more after {answered} answers");
                answered += std::iter::from_fn(|| rig.driver.take_used(0)).count();
                turns += 1;
                if turns < 10 {
                    // Doorbells meanwhile change nothing.
                    rig.kick();
                }
            }
            let elapsed = started.elapsed();
            assert!(elapsed >= Duration::from_millis(80), "type {kind}: too fast: {elapsed:?}");
            // A timer and a completion for each request at most, and those doorbells.
            assert!(turns <= 40, "type {kind}: {turns} turns of the event loop");
            let events = rig.metrics.rate_limiter_event_count.get();
            assert!((1..=8).contains(&events), "type {kind}: {events} timers");
            assert!(rig.metrics.rate_limiter_throttled_events.get() >= events);
        }
    });
}

#[test]
fn what_moves_no_data_is_free_of_bandwidth() {
    with_engines(|engine| {
        let mut rig = limited(engine(), bytes(once(LEN.into())));
        rig.read(0, LEN);
        assert_eq!(rig.request(4, 0, None).1.status, OK);
        assert_eq!(rig.request(8, 0, Some((20, true))).1.status, OK);
        rig.line_up(1, 0);
        rig.kick();
        assert_eq!(rig.answered(), 0, "a read is not free");
    });
}

#[test]
fn a_request_larger_than_the_bucket_passes_and_is_paid_for() {
    with_engines(|engine| {
        let mut rig = limited(engine(), bytes(once(1000)));
        rig.line_up(2, 0);
        rig.kick();
        rig.events.until("the first answer", || rig.driver.take_used(0).is_some());
        assert_eq!(rig.answered(), 0);
    });
}

#[test]
fn a_dial_is_turned_without_the_lock_and_lets_go() {
    with_engines(|engine| {
        let mut rig = limited(engine(), ops(once(1)));
        rig.line_up(10, 0);
        rig.kick();
        rig.events.until("the first answer", || rig.driver.take_used(0).is_some());
        assert_eq!(rig.answered(), 0);
        let two = RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Set(once(2).unwrap()) };
        // With the lock held, as by a drive whose file does not answer.
        rig.cell.registers(|_| rig.cell.limit_dials()[0].turn(two));
        let mut answered = 0;
        let Rig { events, driver, .. } = &mut rig;
        events.until("two answers", || {
            answered += std::iter::from_fn(|| driver.take_used(0)).count();
            answered == 2
        });
        assert_eq!(rig.answered(), 0);
        rig.cell.limit_dials()[0].turn(lift());
        let Rig { events, driver, .. } = &mut rig;
        events.until("the rest", || {
            answered += std::iter::from_fn(|| driver.take_used(0)).count();
            answered == 9
        });
    });
}

/// A reset is no way around a limit, and what was on its way when it came is forgotten.
#[test]
fn a_reset_neither_refills_nor_remembers() {
    with_engines(|engine| {
        let mut rig = limited(engine(), ops(bucket(1, 60)));
        rig.line_up(3, 0);
        rig.kick();
        rig.events.until("the first answer", || rig.driver.take_used(0).is_some());
        rig.cell.write_status(0);
        rig.bring_up(0);
        let reads = rig.metrics.read_count.get();
        rig.line_up(1, 0);
        rig.kick();
        rig.events.until("the answer after the reset", || rig.driver.take_used(0).is_some());
        assert_eq!(rig.metrics.read_count.get(), reads + 1);
        assert!(!rig.events.turn(150), "nothing is left behind");
        assert!(rig.driver.take_used(0).is_none());

        // The timer may also report while there is no driver at all.
        rig.line_up(2, 0);
        rig.kick();
        rig.events.until("an answer", || rig.driver.take_used(0).is_some());
        rig.cell.write_status(0);
        assert!(rig.events.turn(10_000));
        rig.bring_up(0);
        rig.read(0, LEN);
    });
}

#[test]
fn a_paused_drive_does_not_move_and_goes_on_later() {
    with_engines(|engine| {
        let mut rig = limited(engine(), ops(bucket(1, 30)));
        rig.line_up(3, 0);
        rig.kick();
        rig.events.until("the first answer", || rig.driver.take_used(0).is_some());
        rig.cell.pause();
        let used = rig.metrics.read_count.get();
        // The timer reports into the pause.
        assert!(rig.events.turn(10_000));
        assert_eq!((rig.answered(), rig.metrics.read_count.get()), (0, used));
        rig.cell.resume();
        let mut answered = 0;
        let Rig { events, driver, .. } = &mut rig;
        events.until("the rest", || {
            answered += std::iter::from_fn(|| driver.take_used(0)).count();
            answered == 2
        });
        // And a pause before the timer reports takes nothing from it.
        rig.line_up(2, 0);
        rig.kick();
        rig.cell.pause();
        rig.cell.resume();
        rig.wait_any();
        rig.wait_any();
    });
}

#[test]
fn a_visit_after_a_wait_lasts_no_longer_than_any_other() {
    let mut rig = limited(Engine::Sync, ops(once(1)));
    // 10 MiB, more than one visit moves.
    let buffers: Vec<Vec<Buffer>> = (0..11)
        .map(|_| {
            let at = rig.place();
            let header = rig.header(at, 0, 0);
            let data = Buffer { addr: 0x20_0000, len: 1 << 20, writable: true };
            vec![header, data, rig.status_at(at + 16)]
        })
        .collect();
    for chain in &buffers {
        rig.offer(chain, chain[2].addr);
    }
    rig.kick();
    assert_eq!(rig.answered(), 1);
    rig.cell.limit_dials()[0].turn(lift());
    assert!(rig.events.turn(10_000));
    let first = std::iter::from_fn(|| rig.driver.take_used(0)).count();
    assert!((1..10).contains(&first), "{first} requests in one visit");
    assert_eq!(rig.answered() + first, 10);
}

#[test]
fn reads_and_writes_are_timed() {
    with_engines(|engine| {
        let mut rig = Rig::new(disk_of(&pattern(41, 1 << 20)), engine(), Options::default());
        rig.line_up(50, 0);
        rig.line_up(50, 1);
        rig.kick();
        let started = Instant::now();
        let mut answered = 0;
        while answered < 100 {
            answered += rig.answered();
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        let limit = started.elapsed().as_micros() as u64;
        for spread in [rig.metrics.read_agg.take(), rig.metrics.write_agg.take()] {
            assert!(spread.min_us <= spread.max_us && spread.max_us <= spread.sum_us, "{spread:?}");
            assert!(spread.max_us <= limit + 1000 && spread.sum_us <= 50 * (limit + 1000), "{spread:?} in {limit}");
        }
    });
}
