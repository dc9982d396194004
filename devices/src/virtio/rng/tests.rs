use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::stock::{STOCK_LEN, Stock};
use super::{MAX_REQUEST_LEN, Rng, RngSpec};
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};
use crate::sys::iovec::GuestIoVec;
use crate::sys::nonblocking;
use crate::sys::random;
use crate::virtio::device::{Rings, VirtioDevice};
use crate::virtio::queue::Visit;
use crate::virtio::test_driver::{Buffer, TestDriver};

const FREE: u64 = TestDriver::FREE;

struct Bench {
    driver: TestDriver,
    rings: Rings,
    rng: Rng,
}

fn buffer(addr: u64, len: u32) -> Buffer {
    Buffer { addr, len, writable: true }
}

impl Bench {
    fn new() -> Self {
        Self::limited(RateLimits::default())
    }

    fn limited(limits: RateLimits) -> Self {
        Self::of(Rng::new(RngSpec { limits }).unwrap())
    }

    fn of(mut rng: Rng) -> Self {
        let driver = TestDriver::new(1, 256);
        let mut rings = driver.rings(true, true);
        rng.activate(rng.features(), &mut rings).unwrap();
        Self { driver, rings, rng }
    }

    fn kick(&mut self) -> Visit {
        self.rng.on_doorbell(0, &mut self.rings).unwrap()
    }

    fn serve_all(&mut self) {
        while self.kick() == Visit::More {}
    }

    /// Offers one chain, has everything served, and returns how much of it was written.
    fn ask(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.driver.offer(0, buffers);
        self.serve_all();
        let (back, written) = self.driver.take_used(0).expect("an answer");
        assert_eq!(back, head);
        written
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn answered(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.take_used(0)).count()
    }

    fn await_timer(&mut self) {
        let source = &self.rng.sources()[0];
        assert!(nonblocking::wait(source.fd, libc::POLLIN, 10_000).unwrap(), "the timer stays silent");
        self.rng.on_source(source.token, &mut self.rings).unwrap();
    }
}

#[test]
fn buffers_are_filled_with_bytes_that_differ() {
    let mut bench = Bench::new();
    let mut seen = HashSet::new();
    for round in 0..500u64 {
        // As Linux asks, and once in a while a page.
        let len = if round % 10 == 0 { 4096 } else { 64 };
        assert_eq!(bench.ask(&[buffer(FREE, len)]), len);
        for part in bench.bytes(FREE, len as usize).chunks_exact(16) {
            assert!(seen.insert(part.to_vec()), "16 bytes came twice");
        }
    }
    let metrics = bench.rng.metrics();
    assert_eq!(metrics.entropy_bytes.get(), 450 * 64 + 50 * 4096);
    assert_eq!((metrics.requests_count.get(), metrics.entropy_event_fails.get()), (500, 0));
    assert!(bench.driver.interrupts() > 0);
}

/// G14: a chain may claim as much as it likes.
#[test]
fn no_request_gets_more_than_64_kib() {
    let mut bench = Bench::new();
    bench.driver.ram.write_slice(&[0xa5; 16], GuestAddress(FREE + u64::from(MAX_REQUEST_LEN))).unwrap();
    assert_eq!(bench.ask(&[buffer(FREE, 8 << 20)]), MAX_REQUEST_LEN);
    assert_eq!(bench.bytes(FREE + u64::from(MAX_REQUEST_LEN), 16), [0xa5; 16]);
    // Nearly 4 GiB, in pieces that all lie in the same 16 MiB.
    let len = TestDriver::RAM_LEN as u32 - FREE as u32;
    assert_eq!(bench.ask(&[buffer(FREE, len); 256]), MAX_REQUEST_LEN);
    // More than 4 GiB is no chain at all.
    let head = bench.driver.offer(0, &[buffer(FREE, u32::MAX), buffer(FREE, u32::MAX)]);
    bench.serve_all();
    assert_eq!(bench.driver.take_used(0), Some((head, 0)));
}

#[test]
fn a_request_without_room_is_given_back_empty() {
    let mut bench = Bench::new();
    let read_only = Buffer { addr: FREE, len: 64, writable: false };
    bench.driver.ram.write_slice(&[0xa5; 64], GuestAddress(FREE)).unwrap();
    for chain in [vec![read_only], vec![buffer(FREE, 0)], vec![read_only, buffer(FREE, 0)]] {
        assert_eq!(bench.ask(&chain), 0, "{chain:?}");
    }
    assert_eq!(bench.bytes(FREE, 64), [0xa5; 64]);
    assert_eq!(bench.rng.metrics().entropy_event_fails.get(), 3);
    // A readable buffer is against §5.4.6.1, but does no harm.
    assert_eq!(bench.ask(&[read_only, buffer(FREE + 64, 32)]), 32);
    assert_eq!(bench.bytes(FREE, 64), [0xa5; 64]);
}

#[test]
fn long_work_is_done_in_several_visits() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.driver.offer(0, &[buffer(FREE, MAX_REQUEST_LEN)]);
    }
    assert_eq!(bench.kick(), Visit::More);
    assert_eq!(bench.answered(), 2);
    bench.serve_all();
    assert_eq!(bench.answered(), 18);
}

#[test]
fn a_host_without_random_bytes_is_counted() {
    /// Gives 600 bytes in all.
    fn meagre(piece: GuestIoVec) -> std::io::Result<()> {
        static LEFT: AtomicU64 = AtomicU64::new(600);
        let len = piece.len() as u64;
        match LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len)) {
            Ok(_) => random::fill(piece),
            Err(_) => Err(std::io::ErrorKind::Other.into()),
        }
    }
    let rng = Rng::new(RngSpec::default()).unwrap().with_stock(Stock::new(meagre));
    let mut bench = Bench::of(rng);
    // What was written is told, also if it is not all.
    assert_eq!(bench.ask(&[buffer(FREE, 300), buffer(FREE, 300), buffer(FREE, 300)]), 600);
    assert_eq!(bench.ask(&[buffer(FREE, 64)]), 0);
    let metrics = bench.rng.metrics();
    assert_eq!((metrics.host_rng_fails.get(), metrics.entropy_bytes.get()), (2, 600));
}

#[test]
fn no_byte_is_handed_out_twice_or_kept() {
    /// Counts up in units of four bytes.
    fn counting(piece: GuestIoVec) -> std::io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let words = piece.len() as u64 / 4;
        let first = NEXT.fetch_add(words, Ordering::Relaxed);
        let bytes: Vec<u8> = (first..first + words).flat_map(|word| (word as u32).to_le_bytes()).collect();
        piece.copy_from(&bytes);
        Ok(())
    }
    let mut stock = Stock::new(counting);
    let mut seen = HashSet::new();
    for round in 0..2000usize {
        let mut bytes = vec![0u8; 4 * (round % 80)];
        stock.fill(GuestIoVec::new(&VolatileSlice::from(&mut bytes[..]))).unwrap();
        for word in bytes.chunks_exact(4) {
            assert!(word != [0; 4] && seen.insert(word.to_vec()), "round {round}: {word:?}");
        }
        let (store, gone) = stock.bytes();
        assert!(gone <= STOCK_LEN && store[..gone].iter().all(|byte| *byte == 0), "what was used is kept");
    }
}

#[test]
fn a_limit_holds_and_lets_go() {
    let bucket = |size, refill_ms| Some(BucketSpec { size, one_time_burst: 0, refill_ms });
    for limits in
        [RateLimits { bandwidth: None, ops: bucket(4, 40) }, RateLimits { bandwidth: bucket(256, 40), ops: None }]
    {
        let mut bench = Bench::limited(limits);
        let metrics = bench.rng.metrics();
        let started = Instant::now();
        for _ in 0..12 {
            bench.driver.offer(0, &[buffer(FREE, 64)]);
        }
        bench.serve_all();
        let (mut answered, mut turns) = (bench.answered(), 0);
        assert!((4..12).contains(&answered), "{answered} at once");
        while answered < 12 {
            // Doorbells, pauses and resets meanwhile change nothing.
            bench.serve_all();
            bench.rng.quiesce(&mut bench.rings).unwrap();
            bench.rng.reset();
            bench.await_timer();
            answered += bench.answered();
            turns += 1;
        }
        assert!(started.elapsed() >= Duration::from_millis(80), "too fast: {:?}", started.elapsed());
        assert!(turns <= 8, "{turns} timers");
        assert_eq!(metrics.rate_limiter_event_count.get(), turns);
        assert!(metrics.entropy_rate_limiter_throttled.get() >= turns);
    }
    let mut bench = Bench::limited(RateLimits { bandwidth: None, ops: bucket(1, 3_600_000) });
    for _ in 0..5 {
        bench.driver.offer(0, &[buffer(FREE, MAX_REQUEST_LEN)]);
    }
    bench.serve_all();
    assert_eq!(bench.answered(), 1);
    bench.rng.limit_dials()[0].turn(RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Remove });
    bench.await_timer();
    assert_eq!(bench.answered(), 2, "a visit after a wait lasts no longer than any other");
    bench.await_timer();
    assert_eq!(bench.answered(), 2);
}

#[test]
fn there_is_no_configuration_space() {
    let mut rng = Rng::new(RngSpec::default()).unwrap();
    let mut bytes = [0xee; 8];
    rng.read_config(0, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    rng.write_config(0, &[1]);
    assert_eq!(rng.queue_max_sizes(), [256]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a request is cut into buffers, as many bytes as reported are random and the rest is untouched.
    #[test]
    fn what_is_reported_is_what_was_written(
        lens in proptest::collection::vec(prop_oneof![0u32..40, 0u32..400, 0u32..20_000], 1..40),
        readable in 0usize..3,
    ) {
        const GAP: u64 = 16;
        let mut bench = Bench::new();
        let mut at = FREE;
        let mut chain = vec![Buffer { addr: FREE - 64, len: 64, writable: false }; readable];
        for len in &lens {
            chain.push(buffer(at, *len));
            at += u64::from(*len) + GAP;
        }
        let total: u32 = lens.iter().sum();
        let written = bench.ask(&chain);
        prop_assert_eq!(written, total.min(MAX_REQUEST_LEN));
        let (mut at, mut left) = (FREE, written);
        for len in &lens {
            let filled = (*len).min(left);
            left -= filled;
            let bytes = bench.bytes(at, *len as usize + GAP as usize);
            let (random, untouched) = bytes.split_at(filled as usize);
            prop_assert!(random.chunks_exact(16).all(|part| part.iter().any(|byte| *byte != 0)));
            prop_assert!(untouched.iter().all(|byte| *byte == 0));
            at += u64::from(*len) + GAP;
        }
    }
}
