//! Flush requests as drivers make them, and as nobody should.

use std::fs::File;
use std::io;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::BusDevice;
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};
use crate::virtio::device::{Rings, VirtioDevice};
use crate::virtio::queue::Visit;
use crate::virtio::state::BadState;
use crate::virtio::test_driver::{Buffer, TestDriver};

const LEN: u64 = 3 << 20;
/// What an answer holds before the device writes it.
const UNTOUCHED: i32 = 0x5555_5555;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN).unwrap();
    file
}

fn spec() -> PmemSpec {
    PmemSpec { file: file(), read_only: false, start: 0x40_0000_0000, len: 4 << 20, limits: RateLimits::default() }
}

struct Rig {
    driver: TestDriver,
    rings: Rings,
    device: Pmem,
    used: u64,
}

impl Rig {
    fn new(spec: PmemSpec) -> Self {
        let driver = TestDriver::new(1, 64);
        let rings = driver.rings(true, true);
        Self { driver, rings, device: Pmem::new(spec).unwrap(), used: 0 }
    }

    /// Offers a request of this type and returns where its answer will be.
    fn ask(&mut self, kind: u32) -> u64 {
        let at = self.place(kind);
        self.offer(&[(at, 4, false), (at + 8, 4, true)]);
        at + 8
    }

    /// Room for a request and its answer, filled in.
    fn place(&mut self, kind: u32) -> u64 {
        let at = TestDriver::FREE + 16 * self.used;
        self.used += 1;
        self.driver.ram.write_obj(kind, GuestAddress(at)).unwrap();
        self.driver.ram.write_obj(UNTOUCHED, GuestAddress(at + 8)).unwrap();
        at
    }

    fn offer(&mut self, pieces: &[(u64, u32, bool)]) {
        let buffers: Vec<_> = pieces.iter().map(|&(addr, len, writable)| Buffer { addr, len, writable }).collect();
        self.driver.offer(0, &buffers);
    }

    fn ring(&mut self) -> Visit {
        self.device.on_doorbell(0, &mut self.rings).unwrap()
    }

    fn answer(&self, at: u64) -> i32 {
        self.driver.ram.read_obj(GuestAddress(at)).unwrap()
    }

    /// Lengths of the chains that came back.
    fn returned(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.driver.take_used(0).map(|(_, len)| len)).collect()
    }
}

#[test]
fn the_configuration_space_tells_the_place() {
    let mut device = Pmem::new(spec()).unwrap();
    let mut place = [0xee; 20];
    device.read_config(0, &mut place);
    assert_eq!(place[..8], 0x40_0000_0000u64.to_le_bytes());
    assert_eq!(place[8..16], (4u64 << 20).to_le_bytes());
    assert_eq!(place[16..], [0; 4]);
    device.write_config(0, &[1]);
    assert_eq!(device.metrics().cfg_fails.get(), 1);
}

#[test]
fn a_region_is_taken_up_where_it_was() {
    let state = Pmem::new(spec()).unwrap().save();
    Pmem::new(spec()).unwrap().restore(&state).unwrap();
    for other in [PmemSpec { start: 0x41_0000_0000, ..spec() }, PmemSpec { len: 2 << 20, ..spec() }] {
        assert!(matches!(Pmem::new(other).unwrap().restore(&state), Err(BadState::Impossible(_))));
    }
}

#[test]
fn many_flushes_cost_the_host_one() {
    let mut rig = Rig::new(spec());
    let answers: Vec<_> = (0..20).map(|_| rig.ask(0)).collect();
    assert_eq!(rig.ring(), Visit::Idle);
    assert!(answers.iter().all(|at| rig.answer(*at) == 0));
    assert_eq!(rig.returned(), [4; 20]);
    let metrics = rig.device.metrics();
    assert_eq!((metrics.flush_count.get(), metrics.sync_count.get(), metrics.event_fails.get()), (20, 1, 0));
    assert_eq!(rig.driver.interrupts(), 1);
    // A later one is not covered by what was done before it came.
    rig.ask(0);
    rig.ring();
    assert_eq!(metrics.sync_count.get(), 2);
}

#[test]
fn requests_may_be_cut_anywhere() {
    let mut rig = Rig::new(spec());
    let at = rig.place(0);
    let byte = |i: u64, writable| (at + i + if writable { 8 } else { 0 }, 1, writable);
    let pieces: Vec<_> =
        (0..4).map(|i| byte(i, false)).chain([(at + 8, 0, true)]).chain((0..4).map(|i| byte(i, true))).collect();
    rig.offer(&pieces);
    rig.ring();
    assert_eq!((rig.answer(at + 8), rig.returned()), (0, vec![4]));
}

#[test]
fn nonsense_is_refused_and_costs_no_flush() {
    let mut rig = Rig::new(spec());
    let unknown = rig.ask(1);
    let at = rig.place(0);
    // Half a request; no request; no answer; half an answer.
    rig.offer(&[(at, 2, false), (at + 8, 4, true)]);
    rig.offer(&[(at + 8, 4, true)]);
    rig.offer(&[(at, 4, false)]);
    rig.offer(&[(at, 4, false), (at + 12, 2, true)]);
    rig.ring();
    assert_eq!(rig.returned(), [4, 4, 4, 0, 0]);
    assert_eq!((rig.answer(unknown), rig.answer(at + 8)), (-1, -1));
    let metrics = rig.device.metrics();
    assert_eq!((metrics.flush_count.get(), metrics.sync_count.get(), metrics.event_fails.get()), (0, 0, 5));
    // They do not stand in the way of a good one.
    let bad = rig.ask(u32::MAX);
    let good = rig.ask(0);
    rig.ring();
    assert_eq!((rig.answer(bad), rig.answer(good)), (-1, 0));
}

#[test]
fn a_host_that_cannot_flush_is_an_error_in_the_guest() {
    // A pipe cannot be synchronised.
    let (end, _other) = io::pipe().unwrap();
    let mut rig = Rig::new(PmemSpec { file: File::from(std::os::fd::OwnedFd::from(end)), ..spec() });
    let answer = rig.ask(0);
    rig.ring();
    assert_eq!((rig.answer(answer), rig.device.metrics().event_fails.get()), (-1, 1));
    assert!(rig.device.flush().is_err());
}

#[test]
fn read_only_memory_is_durable_as_it_is() {
    let mut rig = Rig::new(PmemSpec { read_only: true, ..spec() });
    let answer = rig.ask(0);
    rig.ring();
    assert_eq!((rig.answer(answer), rig.device.metrics().sync_count.get()), (0, 0));
}

#[test]
fn flushes_wait_for_the_rate_limiter() {
    let ops = |refill_ms| BucketSpec { size: 1, one_time_burst: 0, refill_ms };
    let mut rig = Rig::new(PmemSpec { limits: RateLimits { bandwidth: None, ops: Some(ops(3_600_000)) }, ..spec() });
    // Nonsense takes no token.
    rig.ask(9);
    rig.ring();
    let (first, second) = (rig.ask(0), rig.ask(0));
    rig.ring();
    assert_eq!((rig.answer(first), rig.answer(second)), (0, 0), "one host flush answers both");
    let third = rig.ask(0);
    for _ in 0..3 {
        assert_eq!(rig.ring(), Visit::Idle);
        assert_eq!(rig.answer(third), UNTOUCHED);
    }
    let metrics = rig.device.metrics();
    assert!(metrics.rate_limiter_throttled_events.get() >= 1);
    rig.device.change_limits(RateLimitChange { ops: BucketChange::Set(ops(1)), ..Default::default() });
    rig.ring();
    assert_eq!(rig.answer(third), 0);
    // And when its timer reports.
    let fourth = rig.ask(0);
    rig.ring();
    let start = std::time::Instant::now();
    while rig.answer(fourth) == UNTOUCHED {
        assert!(start.elapsed().as_secs() < 20);
        rig.device.on_source(0, &mut rig.rings).unwrap();
    }
    assert!(metrics.sync_count.get() == 3);
}

/// A flush counts as all of the file's bytes.
#[test]
fn bandwidth_counts_the_file() {
    let limits = RateLimits {
        bandwidth: Some(BucketSpec { size: 2 * LEN, one_time_burst: 0, refill_ms: 3_600_000 }),
        ops: None,
    };
    let mut rig = Rig::new(PmemSpec { limits, ..spec() });
    let answers: Vec<_> = (0..3)
        .map(|_| {
            let answer = rig.ask(0);
            rig.ring();
            rig.answer(answer)
        })
        .collect();
    assert_eq!(answers, [0, 0, UNTOUCHED]);
}

#[test]
fn a_file_that_became_shorter_is_told_at_the_end() {
    let file = file();
    let mut device = Pmem::new(PmemSpec { file: file.try_clone().unwrap(), ..spec() }).unwrap();
    device.flush().unwrap();
    file.set_len(LEN - 1).unwrap();
    assert!(device.flush().unwrap_err().to_string().contains("became shorter"));
}

#[test]
fn writes_to_read_only_memory_are_counted() {
    let device = Pmem::new(PmemSpec { read_only: true, ..spec() }).unwrap();
    let trap = WriteTrap::new("pmem x".to_owned(), device.metrics());
    trap.write(0x1234, &[1, 2, 3]);
    let mut data = [0; 3];
    trap.read(0x1234, &mut data);
    assert_eq!((data, device.metrics().refused_writes_count.get()), ([0xff; 3], 1));
}
