//! Rings against drivers that are right, unusual and wrong.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::sys::iovec::GuestIoVec;
use crate::virtio::test_driver::{Buffer, CountingIrq, TestDriver};

const RAM: u64 = TestDriver::RAM_LEN as u64;

fn good() -> Geometry {
    Geometry { size: 256, ready: true, descriptors: 0x1000, available: 0x3000, used: 0x4000 }
}

fn make(geometry: Geometry) -> Result<VirtQueue, BadQueue> {
    VirtQueue::new(0, 256, geometry, true, true, &TestDriver::new(0, 1).ram)
}

/// G1 and G3.
#[test]
fn geometry_is_checked() {
    assert_eq!(make(good()).unwrap().size(), 256);
    for size in [1, 2, 64, 128] {
        assert_eq!(make(Geometry { size, ..good() }).unwrap().size(), size);
    }
    for size in [0, 3, 255, 257, 512, 0x8000, u16::MAX] {
        assert_eq!(make(Geometry { size, ..good() }).unwrap_err(), BadQueue::Size(size, 256));
    }
    let descriptors = |descriptors| Geometry { descriptors, ..good() };
    let available = |available| Geometry { available, ..good() };
    let used = |used| Geometry { used, ..good() };
    // Lengths in bytes: 4096, 518 and 2054.
    let misplaced = [
        descriptors(0),
        descriptors(0x1008),
        descriptors(RAM),
        descriptors(RAM - 4080),
        descriptors(0xffff_ffff_ffff_f000),
        available(0),
        available(0x3001),
        available(RAM - 516),
        available(u64::MAX - 1),
        used(0),
        used(0x4002),
        used(RAM - 2052),
        used(u64::MAX - 3),
    ];
    for geometry in misplaced {
        assert!(matches!(make(geometry), Err(BadQueue::Place(..))), "{geometry:x?}");
    }
    for geometry in [descriptors(RAM - 4096), available(RAM - 518), used(RAM - 2056)] {
        assert!(make(geometry).is_ok(), "{geometry:x?}");
    }
    let overlapping =
        [descriptors(0x2010), available(0x1000), available(0x1ffe), used(0x3204), available(0x4804), used(0x1800)];
    for geometry in overlapping {
        assert_eq!(make(geometry).unwrap_err(), BadQueue::Overlap, "{geometry:x?}");
    }
    for geometry in [available(0x2000), used(0x3208)] {
        assert!(make(geometry).is_ok(), "{geometry:x?} touches without overlapping");
    }
}

#[test]
fn rings_must_not_cross_the_end_of_a_region() {
    let low = (GuestAddress(0), 0x8000);
    let high = (GuestAddress(0x1_0000), 0x8000);
    let ram = GuestRam::from_ranges(&[low, high]).unwrap();
    let at = |used| VirtQueue::new(0, 256, Geometry { used, ..good() }, true, true, &ram);
    assert!(at(0x7000).is_ok() && at(0x1_0000).is_ok());
    for used in [0x7ffc, 0x7800, 0x8000, 0xfffc] {
        assert_eq!(at(used).unwrap_err(), BadQueue::Place("the used ring", used));
    }
}

#[test]
fn a_queue_that_is_not_ready_is_empty() {
    let driver = TestDriver::new(1, 16);
    let mut queue =
        VirtQueue::new(0, 16, Geometry { size: 7, ..Geometry::default() }, true, true, &driver.ram).unwrap();
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&driver.ram, &mut chain), Ok(false));
    assert_eq!(queue.arm(&driver.ram), Ok(false));
    assert_eq!(queue.has_available(&driver.ram), Ok(false));
    assert_eq!(queue.serve(&driver.ram, &*driver.irq, |_| panic!("nothing to serve")), Ok(Visit::Idle));
    assert_eq!(driver.ram.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
}

/// The indices wrap after 65536; every chain comes back once, in order, with its length.
#[test]
fn indices_wrap() {
    for event_idx in [false, true] {
        let mut driver = TestDriver::new(1, 8);
        let mut rings = driver.rings(event_idx, false);
        let buffer = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
        for round in 0..70_000u32 {
            let head = driver.offer(0, &[buffer]);
            let visit = rings.queues[0].serve(&rings.ram, &*rings.irq, |_| Served::Done { written: round });
            assert_eq!(visit, Ok(Visit::Idle));
            assert_eq!(driver.take_used(0), Some((head, round)));
            assert_eq!(driver.take_used(0), None);
        }
    }
}

#[test]
fn put_back_chains_come_again() {
    let mut driver = TestDriver::new(1, 8);
    let mut rings = driver.rings(true, false);
    let buffer = |i: u64| Buffer { addr: TestDriver::FREE + 64 * i, len: 16, writable: true };
    let heads: Vec<u16> = (0..4).map(|i| driver.offer(0, &[buffer(i)])).collect();
    let mut left = 2;
    let visit = rings.queues[0].serve(&rings.ram, &*rings.irq, |_| {
        if left == 0 {
            return Served::PutBack;
        }
        left -= 1;
        Served::Done { written: 0 }
    });
    assert_eq!(visit, Ok(Visit::Idle));
    assert_eq!(rings.queues[0].has_available(&rings.ram), Ok(true));
    let mut seen = Vec::new();
    rings.queues[0]
        .serve(&rings.ram, &*rings.irq, |chain| {
            seen.push(chain.head());
            Served::Later
        })
        .unwrap();
    assert_eq!(seen, heads[2..]);
    for head in seen.into_iter().rev() {
        rings.queues[0].complete(&rings.ram, head, 1).unwrap();
    }
    let back: Vec<_> = std::iter::from_fn(|| driver.take_used(0)).collect();
    assert_eq!(back, [(heads[0], 0), (heads[1], 0), (heads[3], 1), (heads[2], 1)]);
}

/// The driver moves its index forward at every look: a visit ends all the same.
#[test]
fn a_visit_is_bounded() {
    let mut driver = TestDriver::new(1, 16);
    let mut rings = driver.rings(false, false);
    let buffer = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
    driver.offer(0, &[buffer]);
    let mut served = 0;
    let visit = rings.queues[0].serve(&rings.ram, &*rings.irq, |_| {
        served += 1;
        driver.offer(0, &[buffer]);
        Served::Done { written: 0 }
    });
    assert_eq!((visit, served), (Ok(Visit::More), 16));
    assert_eq!(driver.interrupts(), 1);
}

/// A malformed chain is given back, counted and passed over, and the next one is served.
#[test]
fn malformed_chains_do_not_stop_the_queue() {
    let mut driver = TestDriver::new(1, 16);
    let mut rings = driver.rings(true, false);
    let good = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
    let bad = Buffer { addr: RAM - 8, ..good };
    let heads: Vec<u16> = [bad, good, bad, bad, good].iter().map(|b| driver.offer(0, &[*b])).collect();
    let mut served = Vec::new();
    rings.queues[0]
        .serve(&rings.ram, &*rings.irq, |chain| {
            served.push(chain.head());
            Served::Done { written: 16 }
        })
        .unwrap();
    assert_eq!(served, [heads[1], heads[4]]);
    assert_eq!(rings.queues[0].bad_chains(), 3);
    let back: Vec<_> = std::iter::from_fn(|| driver.take_used(0)).collect();
    assert_eq!(back, [(heads[0], 0), (heads[1], 16), (heads[2], 0), (heads[3], 0), (heads[4], 16)]);
}

#[test]
fn several_chains_appear_together() {
    let mut driver = TestDriver::new(1, 4);
    let mut rings = driver.rings(true, false);
    let mut written = 0;
    for count in [1u16, 3, 4, 2, 4] {
        let buffer = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
        let mut chain = Chain::new();
        let chains: Vec<(u16, u32)> = (0..count)
            .map(|_| {
                let head = driver.offer(0, &[buffer]);
                assert_eq!(rings.queues[0].pop(&rings.ram, &mut chain), Ok(true));
                written += 1;
                (head, written)
            })
            .collect();
        rings.queues[0].complete_together(&rings.ram, &chains).unwrap();
        assert_eq!(std::iter::from_fn(|| driver.take_used(0)).collect::<Vec<_>>(), chains);
    }
    rings.queues[0].complete_together(&rings.ram, &[]).unwrap();
    assert_eq!(driver.take_used(0), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// §2.7.10.1: an interrupt exactly when the completions of a batch pass the driver's `used_event`.
    #[test]
    fn interrupts_follow_used_event(batches in proptest::collection::vec((1u16..=8, any::<u16>(), any::<bool>()), 1..60)) {
        let mut driver = TestDriver::new(1, 8);
        let mut rings = driver.rings(true, false);
        let buffer = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
        let used_event = GuestAddress(driver.queues[0].geometry.available + 4 + 2 * 8);
        let mut used = 0u16;
        let mut expected = 0;
        for (count, event, near) in batches {
            // Anywhere, or close to where it matters.
            let event = if near { used.wrapping_add(event % 10).wrapping_sub(1) } else { event };
            driver.ram.write_obj(event, used_event).unwrap();
            for _ in 0..count {
                driver.offer(0, &[buffer]);
            }
            rings.queues[0].serve(&rings.ram, &*rings.irq, |_| Served::Done { written: 0 }).unwrap();
            expected += u32::from((0..count).any(|i| used.wrapping_add(i) == event));
            used = used.wrapping_add(count);
            prop_assert_eq!(driver.interrupts(), expected);
            while driver.take_used(0).is_some() {}
        }
    }

    /// Rings full of noise: no panic, no endless visit, and no write outside the used ring.
    #[test]
    fn noise_is_survived(
        seed in any::<u64>(),
        event_idx in any::<bool>(),
        index in any::<u16>(),
        near in any::<bool>(),
    ) {
        let driver = TestDriver::new(1, 32);
        let geometry = driver.queues[0].geometry;
        let mut rings = driver.rings(event_idx, true);
        let mut noise = vec![0u8; 32 * 16 + 6 + 64];
        let mut state = seed | 1;
        for (i, byte) in noise.iter_mut().enumerate() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Small indices, addresses and lengths now and then, or nothing would ever be right.
            let byte_in_descriptor = i % 16;
            let small = state >> 60 < 12 && matches!(byte_in_descriptor, 3..=7 | 9..=11 | 13 | 15);
            *byte = if small { 0 } else { (state >> 32) as u8 };
        }
        let (table, ring) = noise.split_at(32 * 16);
        driver.ram.write_slice(table, GuestAddress(geometry.descriptors)).unwrap();
        driver.ram.write_slice(ring, GuestAddress(geometry.available)).unwrap();
        let index = if near { index % 33 } else { index };
        driver.ram.write_obj(index, GuestAddress(geometry.available + 2)).unwrap();
        let before_used = driver.ram.read_obj::<u64>(GuestAddress(geometry.used - 8)).unwrap();
        let mut served = 0u32;
        for _ in 0..4 {
            let visit = rings.queues[0].serve(&rings.ram, &*rings.irq, |chain| {
                served += 1;
                assert!(chain.readable().len() + chain.writable().len() <= 32);
                assert_eq!(GuestIoVec::total(chain.writable()) as u32, chain.writable_len());
                if served.is_multiple_of(3) { Served::PutBack } else { Served::Done { written: 0 } }
            });
            if visit.is_err() {
                break;
            }
        }
        prop_assert!(served <= 4 * 32);
        let used: u16 = driver.ram.read_obj(GuestAddress(geometry.used + 2)).unwrap();
        prop_assert!(u32::from(used) <= 4 * 33 * 33);
        prop_assert_eq!(driver.ram.read_obj::<u64>(GuestAddress(geometry.used - 8)).unwrap(), before_used);
        let after = GuestAddress(geometry.used + 6 + 8 * 32);
        prop_assert_eq!(driver.ram.read_obj::<u64>(after).unwrap(), 0);
    }
}

#[test]
fn interrupts_without_event_idx_follow_the_flag() {
    let mut driver = TestDriver::new(1, 8);
    let mut rings = driver.rings(false, false);
    let buffer = Buffer { addr: TestDriver::FREE, len: 16, writable: true };
    for (flags, interrupts) in [(0u16, 1), (1, 1), (0, 2), (0xfffe, 3), (0xffff, 3)] {
        driver.ram.write_obj(flags, GuestAddress(driver.queues[0].geometry.available)).unwrap();
        driver.offer(0, &[buffer]);
        rings.queues[0].serve(&rings.ram, &*rings.irq, |_| Served::Done { written: 0 }).unwrap();
        assert_eq!(driver.interrupts(), interrupts, "flags {flags:#x}");
        driver.take_used(0).unwrap();
    }
    let irq = CountingIrq::default();
    rings.queues[0].notify(&rings.ram, &irq).unwrap();
    assert_eq!(irq.queue.load(Ordering::Relaxed), 0, "nothing new, nothing to tell");
}
