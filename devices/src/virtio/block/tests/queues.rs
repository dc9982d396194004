//! Drives with several queues: each is a lane, and they work side by side.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::rig::*;
use crate::event::Subscriber;
use crate::rate_limit::{BucketSpec, RateLimits};
use crate::virtio::block::device::F_MQ;
use crate::virtio::block::{BackingFile, Engine, UringHub, swap_file};
use crate::virtio::cell::LaneSeat;
use crate::virtio::registers::Area;
use crate::virtio::test_driver::{Buffer, TestDriver};

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options { queues: 2, ..Options::default() }
}

fn with_engines(test: impl Fn(&dyn Fn() -> Engine)) {
    test(&|| Engine::Sync);
    test(&|| Engine::Async(UringHub::new(2).expect("the Async engine needs io_uring; see kernel.io_uring_disabled")));
}

/// Makes a read of the sector available on this queue; returns where its data will be.
fn line_up(rig: &mut Rig, queue: usize, sector: u64) -> u64 {
    let at = rig.place();
    let buffers =
        [rig.header(at, 0, sector), Buffer { addr: at + 0x1000, len: 512, writable: true }, rig.status_at(at + 16)];
    rig.queue = queue;
    rig.offer(&buffers, at + 16);
    at + 0x1000
}

#[test]
fn every_queue_reads_and_writes_the_disk() {
    with_engines(|engine| {
        let image = pattern(60, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), options());
        assert_ne!(rig.features() & F_MQ, 0);
        let mut num_queues = [0; 2];
        rig.cell.read_config(34, &mut num_queues);
        assert_eq!((num_queues, rig.cell.lane_count()), ([2, 0], 2));
        for queue in [0, 1, 1, 0] {
            rig.queue = queue;
            assert_eq!(rig.read(8, 4096), image[4096..8192]);
            assert_eq!(rig.write(queue as u64, &[queue as u8 + 1; 512]).status, OK);
        }
        assert_eq!(content(&file)[..1024], [[1; 512], [2; 512]].concat());
        assert_eq!((rig.metrics.read_count.get(), rig.metrics.write_count.get()), (4, 4));
    });
    let one = Rig::idle(disk_of(&pattern(60, MIB)), Engine::Sync, false, true);
    assert_eq!(one.features() & F_MQ, 0);
}

/// While a lane is at work, the other ones, and the registers, answer.
#[test]
fn a_lane_at_work_holds_up_neither_the_others_nor_the_registers() {
    let mut rig = Rig::new(disk_of(&pattern(61, MIB)), Engine::Sync, options());
    let seat = LaneSeat::new(rig.cell.clone(), 1);
    let bell = seat.sources().into_iter().find(|source| source.token & 0xf_ffff == 0x1_0001).expect("its doorbell");
    line_up(&mut rig, 1, 3);
    let (done, hear) = mpsc::channel();
    let cell = rig.cell.clone();
    cell.look(|_| {
        std::thread::spawn({
            let cell = rig.cell.clone();
            move || {
                seat.ready(bell.token);
                done.send(cell.registers(|r| r.status().bits())).unwrap();
            }
        });
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(15));
    });
    assert!(rig.driver.take_used(1).is_some());
}

/// Threads, each with a lane, until the end of `work`.
fn served<T>(rig: &mut Rig, work: impl FnOnce(&mut Rig, &[AtomicU32; 2]) -> T) -> T {
    let loops = [0, 1].map(|lane| {
        let mut events = Loop::new();
        events.add(std::sync::Arc::new(LaneSeat::new(rig.cell.clone(), lane)));
        events
    });
    let (stop, turns) = (AtomicBool::new(false), [AtomicU32::new(0), AtomicU32::new(0)]);
    std::thread::scope(|scope| {
        for (events, turns) in loops.iter().zip(&turns) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    events.turn(1);
                    turns.fetch_add(1, Ordering::Release);
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(rig, &turns)));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Each thread has looked for events at least once from now on.
fn all_turn(turns: &[AtomicU32; 2]) {
    let before = turns.each_ref().map(|turns| turns.load(Ordering::Acquire));
    let begun = std::time::Instant::now();
    while turns.iter().zip(before).any(|(turns, before)| turns.load(Ordering::Acquire).wrapping_sub(before) < 2) {
        assert!(begun.elapsed() < PATIENCE, "an event loop stands still");
        std::thread::yield_now();
    }
}

/// A reset is complete when it returns, whatever the lanes were at.
#[test]
fn a_reset_while_lanes_work() {
    let image = pattern(62, MIB);
    let mut rig = Rig::made_of(disk_of(&image), Engine::Sync, options());
    served(&mut rig, |rig, turns| {
        for round in 0..200u64 {
            rig.bring_up_with(0, &[0, 1]);
            let places: Vec<u64> = (0..64).map(|i| line_up(rig, i % 2, i as u64)).collect();
            for queue in [0, 1] {
                rig.cell.ring_doorbell(queue);
            }
            if round % 3 != 0 {
                // At work, or about to be.
                std::thread::yield_now();
            }
            rig.cell.write_status(0);
            for place in &places {
                rig.driver.ram.write_slice(&[0x77; 512], GuestAddress(*place)).unwrap();
            }
            let used = |rig: &Rig| [0, 1].map(|queue| rig.bytes(rig.driver.queues[queue].geometry.used, 64));
            let before = used(rig);
            rig.cell.ring_doorbell(0);
            rig.cell.ring_doorbell(1);
            all_turn(turns);
            assert!(
                places.iter().all(|place| rig.bytes(*place, 512) == [0x77; 512]),
                "round {round}: data after a reset"
            );
            assert!(used(rig) == before, "round {round}: answers after a reset");
        }
    });
    rig.bring_up(0);
    for queue in [0, 1] {
        rig.queue = queue;
        assert_eq!(rig.read(0, 512), image[..512]);
    }
}

/// A pause completes what is in flight on all queues, and a drive made of the saved state goes on with each of them where it was.
#[test]
fn all_lanes_stand_still_and_go_on_elsewhere() {
    with_engines(|engine| {
        let image = pattern(63, MIB);
        let mut rig = Rig::new(disk_of(&image), engine(), options());
        for round in 0..5 {
            let places: Vec<u64> = (0..40).map(|i| line_up(&mut rig, i % 2, i as u64)).collect();
            rig.cell.ring_doorbell(0);
            rig.cell.ring_doorbell(1);
            if round % 2 == 0 {
                rig.events.turn(0);
            }
            rig.cell.pause();
            // What was taken is answered, and nothing is taken any more.
            let answered =
                |rig: &mut Rig| [0, 1].map(|queue| std::iter::from_fn(|| rig.driver.take_used(queue)).count());
            let first = answered(&mut rig);
            rig.cell.ring_doorbell(0);
            rig.cell.ring_doorbell(1);
            rig.events.settle();
            assert_eq!(answered(&mut rig), [0, 0], "round {round}: served while paused");
            let state = rig.cell.save().unwrap();
            assert_eq!(state.positions.len(), 2);
            let mut next = Rig::made_of(disk_of(&image), engine(), options());
            let mut memory = vec![0; TestDriver::RAM_LEN];
            rig.driver.ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
            next.driver.ram.write_slice(&memory, GuestAddress(0)).unwrap();
            next.driver.queues = std::mem::take(&mut rig.driver.queues);
            next.cell.restore(&state).unwrap();
            assert_eq!(next.cell.save().unwrap(), state);
            next.cell.resume();
            rig = next;
            let mut all = first;
            let Rig { events, driver, .. } = &mut rig;
            events.until("the rest", || {
                let more = [0, 1].map(|queue| std::iter::from_fn(|| driver.take_used(queue)).count());
                all = [all[0] + more[0], all[1] + more[1]];
                all == [20, 20]
            });
            for (i, place) in places.iter().enumerate() {
                assert_eq!(rig.bytes(*place, 512), image[512 * i..][..512]);
            }
        }
    });
}

/// One budget, whoever asks.
#[test]
fn two_lanes_get_what_one_would() {
    let ops = Some(BucketSpec { size: 30, one_time_burst: 0, refill_ms: 3_600_000 });
    for round in 0..20 {
        let limits = RateLimits { bandwidth: None, ops };
        let mut rig = Rig::new(disk_of(&pattern(64, MIB)), Engine::Sync, Options { limits, ..options() });
        for i in 0..80 {
            line_up(&mut rig, i % 2, i as u64);
        }
        let answered = served(&mut rig, |rig, turns| {
            rig.cell.ring_doorbell(0);
            rig.cell.ring_doorbell(1);
            // A visit takes what there is.
            for _ in 0..3 {
                all_turn(turns);
            }
            [0, 1].map(|queue| std::iter::from_fn(|| rig.driver.take_used(queue)).count())
        });
        assert_eq!(answered[0] + answered[1], 30, "round {round}: {answered:?}");
        assert_eq!(rig.metrics.read_count.get(), 30);
    }
}

/// G1 to G3 on the other queue.
#[test]
fn every_queue_has_its_geometry_judged_and_frozen() {
    let mut rig = Rig::new(disk_of(&pattern(65, MIB)), Engine::Sync, options());
    let refused = rig.metrics.cfg_fails.get();
    rig.cell.registers(|r| {
        r.select_queue(1);
        r.set_queue_size(8);
        r.set_queue_address(Area::Used, false, 0xdead_0000);
        r.set_queue_ready(0);
    });
    assert_eq!(rig.metrics.cfg_fails.get() - refused, 3);
    rig.queue = 1;
    rig.read(7, 512);
    for (bad_size, bad_used) in [(3, 0), (256, 2), (256, 0xd000_0000)] {
        rig.cell.write_status(0);
        let geometry = &mut rig.driver.queues[1].geometry;
        let good = *geometry;
        (geometry.size, geometry.used) = (bad_size, geometry.used.wrapping_add(bad_used));
        let bad = *geometry;
        *geometry = good;
        rig.cell.write_status(1);
        rig.cell.write_status(3);
        rig.cell.registers(|r| {
            r.select_driver_features(1);
            r.accept_features(1);
        });
        rig.cell.write_status(11);
        rig.cell.registers(|r| {
            for (queue, geometry) in [(0, rig.driver.queues[0].geometry), (1, bad)] {
                r.select_queue(queue);
                r.set_queue_size(geometry.size.into());
                r.set_queue_address(Area::Descriptors, false, geometry.descriptors as u32);
                r.set_queue_address(Area::Available, false, geometry.available as u32);
                r.set_queue_address(Area::Used, false, geometry.used as u32);
                r.set_queue_ready(1);
            }
        });
        rig.cell.write_status(15);
        assert_eq!(rig.status().bits(), 0x4f, "{bad_size} {bad_used:#x}");
    }
    rig.cell.write_status(0);
    rig.bring_up(0);
    rig.read(0, 512);
}

/// A ring that breaks stops the whole device.
#[test]
fn a_broken_ring_stops_all_lanes() {
    for broken in [0, 1] {
        let mut rig = Rig::new(disk_of(&pattern(66, MIB)), Engine::Sync, options());
        let available = rig.driver.queues[broken].geometry.available;
        rig.driver.ram.write_obj(5000u16, GuestAddress(available + 2)).unwrap();
        rig.cell.ring_doorbell(broken as u32);
        rig.events.settle();
        assert_eq!(rig.status().bits(), 0x4f);
        line_up(&mut rig, 1 - broken, 0);
        rig.kick();
        rig.events.settle();
        assert!(rig.driver.take_used(1 - broken).is_none(), "served by a device that needs a reset");
        rig.cell.write_status(0);
        rig.bring_up(0);
        rig.read(0, 512);
    }
}

/// A driver may use any of the queues; the others are empty.
#[test]
fn a_queue_that_is_left_out_is_empty() {
    for used in [0u32, 1] {
        let mut rig = Rig::made_of(disk_of(&pattern(67, MIB)), Engine::Sync, options());
        rig.bring_up_with(0, &[used]);
        rig.events.settle();
        line_up(&mut rig, 1 - used as usize, 0);
        rig.kick();
        rig.events.settle();
        assert!(rig.driver.take_used(1 - used as usize).is_none());
        rig.queue = used as usize;
        rig.read(0, 512);
        rig.cell.pause();
        let state = rig.cell.save().unwrap();
        assert_eq!(state.positions[1 - used as usize].next_used, 0);
        assert_eq!(state.positions[used as usize].next_used, 1);
    }
}

#[test]
fn another_file_is_behind_all_lanes() {
    with_engines(|engine| {
        let (first, second) = (pattern(68, MIB), pattern(69, 2 * MIB));
        let mut rig = Rig::new(disk_of(&first), engine(), options());
        swap_file(&rig.cell, BackingFile::new(disk_of(&second)).unwrap()).unwrap();
        assert_eq!((rig.config_interrupts(), rig.metrics.update_count.get()), (1, 1));
        for queue in [1, 0] {
            rig.queue = queue;
            assert_eq!(rig.read(3000, 4096), second[3000 * 512..3008 * 512]);
        }
    });
}
