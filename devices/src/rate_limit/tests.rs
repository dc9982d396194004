use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

/// An edge-triggered watch, as in the real loop: the timer is never read.
struct Watch(Epoll);

impl Watch {
    fn on(limiter: &RateLimiter) -> Self {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, limiter.source(0).fd, event).unwrap();
        Self(epoll)
    }

    fn reports(&self, timeout_ms: i32) -> bool {
        self.0.wait(timeout_ms, &mut [EpollEvent::default()]).unwrap() == 1
    }
}

fn bucket(size: u64, refill_ms: u64) -> BucketSpec {
    BucketSpec { size, one_time_burst: 0, refill_ms }
}

/// Never full again within a test.
fn slow(size: u64) -> BucketSpec {
    bucket(size, 3_600_000)
}

fn limiter(bandwidth: Option<BucketSpec>, ops: Option<BucketSpec>) -> RateLimiter {
    RateLimiter::new(RateLimits { bandwidth, ops }).unwrap()
}

#[test]
fn without_limits_everything_passes() {
    let mut limiter = limiter(None, None);
    let watch = Watch::on(&limiter);
    assert!((0..1000).all(|_| limiter.take(u64::MAX)));
    assert!(!limiter.is_blocked() && !limiter.on_timer());
    assert!(!watch.reports(0));
}

#[test]
fn a_refused_operation_can_be_done_when_the_timer_reports() {
    let mut limiter = limiter(None, Some(bucket(2, 40)));
    let watch = Watch::on(&limiter);
    assert!(limiter.take(1) && limiter.take(1));
    for _ in 0..3 {
        assert!(!limiter.take(1) && limiter.is_blocked());
        // An early look changes nothing, and the timer is not set anew.
        assert!(!limiter.on_timer() && limiter.is_blocked());
        assert!(watch.reports(5000), "the timer was not armed");
        assert!(limiter.on_timer() && limiter.take(1));
    }
    assert!(!watch.reports(60), "nothing is refused, so nothing is to report");
}

#[test]
fn a_report_that_nobody_heard_is_made_up_for() {
    let mut limiter = limiter(None, Some(bucket(1, 5)));
    let watch = Watch::on(&limiter);
    assert!(limiter.take(0) && !limiter.take(0));
    // The machine is paused when the timer reports.
    assert!(watch.reports(5000));
    assert!(!watch.reports(20), "an edge comes once");
    assert!(limiter.on_timer() && limiter.take(0));
}

#[test]
fn what_is_known_afterwards_is_owed() {
    let mut limiter = limiter(Some(bucket(100, 100)), None);
    assert!(limiter.allow(1) && limiter.allow(1), "asking takes nothing");
    limiter.charge(150);
    assert!(!limiter.allow(1));
    let owed = limiter.blocked_until.unwrap().saturating_duration_since(Instant::now());
    assert!(owed > Duration::from_millis(25) && owed <= Duration::from_millis(51), "{owed:?}");
}

#[test]
fn what_did_not_happen_is_given_back() {
    let mut limiter = limiter(Some(slow(10)), Some(slow(1)));
    assert!(limiter.take(10));
    limiter.give_back(10);
    assert!(limiter.take(10) && !limiter.take(1));
}

#[test]
fn a_turned_dial_starts_full_and_unblocks() {
    let mut limiter = limiter(Some(slow(10)), Some(slow(1)));
    let watch = Watch::on(&limiter);
    let dial = limiter.dial();
    assert!(limiter.take(10) && !limiter.take(10));
    let set = |size| BucketChange::Set(slow(size));
    dial.turn(RateLimitChange { bandwidth: set(7), ops: BucketChange::Remove });
    dial.turn(RateLimitChange { bandwidth: set(20), ops: BucketChange::Keep });
    assert!(watch.reports(5000), "a blocked device hears of it");
    assert!(limiter.on_timer());
    assert!(limiter.take(20) && !limiter.take(20));
    // Nobody needs to hear of it for it to take effect.
    dial.turn(RateLimitChange { bandwidth: BucketChange::Remove, ops: BucketChange::Keep });
    assert!(limiter.take(u64::MAX) && limiter.take(u64::MAX));
    // A change that keeps everything lets nothing through.
    dial.turn(RateLimitChange { bandwidth: set(1), ops: BucketChange::Keep });
    assert!(limiter.take(1));
    dial.turn(RateLimitChange::default());
    assert!(!limiter.take(1));
}

/// The dial may be turned at any moment while the limiter refuses: the device must always be woken.
#[test]
fn a_turn_is_never_missed() {
    let mut limiter = limiter(None, Some(slow(1)));
    let watch = Watch::on(&limiter);
    let dial = limiter.dial();
    const TURNS: u64 = 2000;
    let (heard, wait) = std::sync::mpsc::channel();
    // Before the first turn, whose token it would take otherwise.
    assert!(limiter.take(0));
    let turner = std::thread::spawn(move || {
        for _ in 0..TURNS {
            dial.turn(RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Set(slow(1)) });
            wait.recv().unwrap();
        }
    });
    for turn in 0..TURNS {
        while !limiter.take(0) {
            assert!(watch.reports(10_000), "turn {turn} was missed");
            limiter.on_timer();
        }
        heard.send(()).unwrap();
    }
    turner.join().unwrap();
}

#[test]
fn who_wants_to_come_back_is_called_once() {
    let mut limiter = limiter(None, Some(slow(1)));
    let watch = Watch::on(&limiter);
    limiter.come_back();
    assert!(watch.reports(5000) && limiter.on_timer());
    assert!(!limiter.on_timer() && !watch.reports(0));
    // What is refused is not called before its time.
    limiter.come_back();
    assert!(limiter.take(0) && !limiter.take(0));
    limiter.come_back();
    assert!(!limiter.on_timer());
    assert!(!watch.reports(20));
}

#[test]
fn the_longest_waits_do_no_harm() {
    let mut limiter = limiter(Some(bucket(u64::MAX, u64::MAX)), Some(bucket(1, u64::MAX)));
    assert!(limiter.take(u64::MAX));
    assert!(!limiter.take(u64::MAX) && limiter.is_blocked());
    assert!(!limiter.on_timer());
}

/// Whatever two queues of a device take at the same time, together it is what was set, to the token.
#[test]
fn sharers_take_no_more_than_one_would() {
    const TOKENS: u64 = 50_000;
    for limits in [
        RateLimits { bandwidth: None, ops: Some(slow(TOKENS)) },
        RateLimits { bandwidth: Some(slow(7 * TOKENS)), ops: None },
        RateLimits { bandwidth: Some(slow(7 * TOKENS)), ops: Some(slow(TOKENS)) },
    ] {
        let one = RateLimiter::new(limits).unwrap();
        let sharers = [one.share().unwrap(), one.share().unwrap(), one];
        let taken: u64 = std::thread::scope(|scope| {
            let count = |mut limiter: RateLimiter| scope.spawn(move || (0..).take_while(|_| limiter.take(7)).count());
            sharers.map(count).into_iter().map(|thread| thread.join().unwrap() as u64).sum()
        });
        assert_eq!(taken, TOKENS, "{limits:?}");
    }
}

#[test]
fn a_dial_is_heard_by_all_sharers() {
    let mut one = limiter(None, Some(slow(1)));
    let mut other = one.share().unwrap();
    let watches = [Watch::on(&one), Watch::on(&other)];
    assert!(other.take(1) && !one.take(1) && !other.take(1));
    one.dial().turn(RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Remove });
    assert!(watches.iter().all(|watch| watch.reports(5000)));
    assert!(one.on_timer() && other.on_timer() && one.take(1) && other.take(1));
}

/// A large request waits for its tokens; small ones beside it must not take them from under it.
#[test]
fn what_comes_in_is_kept_for_who_was_refused_first() {
    // A token each millisecond.
    let mut large = limiter(Some(bucket(3_600_000, 3_600_000)), None);
    let mut small = large.share().unwrap();
    assert!(small.take(3_600_000) && !large.take(3_600_000));
    let begun = Instant::now();
    while large.save().bandwidth.unwrap().level < 5 {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing comes in");
        std::thread::yield_now();
    }
    assert!(!small.take(1), "it is for the other");
    // One that asks for less is first no longer.
    large.blocked_until = None;
    assert!(large.take(1));
    small.blocked_until = None;
    assert!(small.take(1));
}
