//! Sizes, statistics, hinting, features, and what survives a reset.

use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::rig::*;
use crate::event::Subscriber;
use crate::virtio::any::AnyDevice;
use crate::virtio::balloon::{Balloon, BalloonSpec, HintingStatus, NotActive, Stat};
use crate::virtio::cell::{ConfigChange, DoorbellBinder, VirtioCell};
use crate::virtio::device::{Kind, VirtioDevice};
use crate::virtio::registers::{Area, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::test_driver::{Buffer, TestDriver};

const STATS: usize = 2;
/// Queue of hints when there are no statistics.
const HINT: usize = 2;

fn with_stats(interval: Duration) -> Rig {
    Rig::new(BalloonSpec { stats_interval: Some(interval), ..BalloonSpec::default() })
}

fn with_hinting() -> Rig {
    Rig::new(BalloonSpec { hinting: true, ..BalloonSpec::default() })
}

fn stats(entries: &[(u16, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn features_and_queues_are_those_that_were_asked_for() {
    let common = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
    let offered = |spec| {
        let balloon = Balloon::new(spec).unwrap();
        assert_eq!(balloon.kind(), Kind::Balloon);
        (balloon.features() & !common, balloon.queue_max_sizes().len(), balloon.sources().len())
    };
    let nothing = BalloonSpec::default;
    assert_eq!(offered(nothing()), (0, 2, 0));
    assert_eq!(offered(BalloonSpec { deflate_on_oom: true, ..nothing() }), (4, 2, 0));
    assert_eq!(offered(BalloonSpec { stats_interval: Some(Duration::from_secs(1)), ..nothing() }), (2, 3, 1));
    assert_eq!(offered(BalloonSpec { hinting: true, ..nothing() }), (8, 4, 0));
    assert_eq!(offered(BalloonSpec { reporting: true, ..nothing() }), (32, 5, 0));
}

#[test]
fn sizes_are_what_host_and_driver_say() {
    let mut rig = Rig::new(BalloonSpec { target_pages: 7, ..BalloonSpec::default() });
    assert_eq!(rig.config(), [7, 0, 0]);
    rig.balloon.write_config(4, &5u32.to_le_bytes());
    rig.balloon.set_target(9);
    assert_eq!((rig.config(), rig.balloon.actual_pages(), rig.balloon.target_pages()), ([9, 5, 0], 5, 9));
    rig.balloon.write_config(0, &1u32.to_le_bytes());
    rig.balloon.write_config(8, &1u32.to_le_bytes());
    assert_eq!((rig.config(), rig.metrics.cfg_fails.get()), ([9, 5, 0], 2));
    rig.balloon.reset();
    assert_eq!(rig.config(), [9, 0, 0], "the host's wish stays");
}

#[test]
fn statistics_are_asked_for_and_taken_in() {
    let mut rig = with_stats(Duration::from_millis(5));
    let first = rig.offer_bytes(STATS, &stats(&[(4, 100), (5, 200)]));
    rig.serve(STATS);
    assert_eq!(rig.driver.take_used(STATS), None, "the buffer waits for the next request");
    assert_eq!(rig.balloon.stats().get(Stat::FreeMemory), Some(100));
    for value in [101, 102] {
        let mut used = None;
        rig.wait(|rig| {
            used = rig.driver.take_used(STATS);
            used.is_some()
        });
        assert_eq!(used.unwrap().1, 0);
        rig.offer_bytes(STATS, &stats(&[(4, value), (0xff, 3)]));
        rig.serve(STATS);
        assert_eq!(rig.balloon.stats().get(Stat::FreeMemory), Some(value));
    }
    assert_eq!(rig.balloon.stats().get(Stat::TotalMemory), Some(200), "as it was last sent");
    assert_eq!((rig.metrics.stats_updates_count.get(), first), (3, 0));
    assert_eq!(rig.metrics.stats_update_fails.get(), 0);
}

#[test]
fn a_driver_that_does_not_answer_is_counted() {
    let mut rig = with_stats(Duration::from_millis(1));
    rig.wait(|rig| rig.metrics.stats_update_fails.get() > 2);
    assert_eq!(rig.driver.interrupts(), 0);
}

/// G20: a buffer of all of memory, one of odd length, and more of them than there may be.
#[test]
fn statistics_that_make_no_sense() {
    let mut rig = with_stats(Duration::from_secs(3600));
    let all = Buffer { addr: 0, len: TestDriver::RAM_LEN as u32, writable: false };
    let head = rig.driver.offer(STATS, &[all]);
    rig.serve(STATS);
    assert_eq!((rig.metrics.stats_update_fails.get(), rig.driver.take_used(STATS)), (1, None));
    rig.driver.offer(STATS, &[Buffer { addr: 0xffff_0000, len: u32::MAX, writable: false }]);
    rig.serve(STATS);
    assert_eq!(rig.driver.take_used(STATS).map(|(_, len)| len), Some(0), "not even a buffer");
    rig.offer_bytes(STATS, &stats(&[(4, 9)])[..9]);
    let last = rig.offer_bytes(STATS, &stats(&[(4, 9)]));
    rig.serve(STATS);
    let back: Vec<_> = std::iter::from_fn(|| rig.driver.take_used(STATS)).collect();
    assert_eq!(back, [(head, 0), (head + 2, 0)], "all but the last");
    assert_eq!((rig.balloon.stats().get(Stat::FreeMemory), last), (Some(9), head + 3));
}

#[test]
fn a_pause_puts_the_waiting_buffer_back() {
    let mut rig = with_stats(Duration::from_millis(5));
    rig.offer_bytes(STATS, &stats(&[(4, 1)]));
    rig.serve(STATS);
    rig.balloon.quiesce(&mut rig.rings).unwrap();
    assert!(rig.rings.queues[STATS].has_available(&rig.driver.ram).unwrap());
    rig.serve(STATS);
    let mut used = None;
    rig.wait(|rig| {
        used = rig.driver.take_used(STATS);
        used.is_some()
    });
    assert_eq!(used, Some((0, 0)));
    assert_eq!(rig.metrics.stats_updates_count.get(), 1, "the same statistics, read again");
    // Not past something malformed that came after it.
    let head = rig.offer_bytes(STATS, &stats(&[(4, 2)]));
    rig.driver.offer(STATS, &[Buffer { addr: u64::MAX, len: 9, writable: false }]);
    rig.serve(STATS);
    rig.balloon.quiesce(&mut rig.rings).unwrap();
    let back: Vec<_> = std::iter::from_fn(|| rig.driver.take_used(STATS)).map(|(head, _)| head).collect();
    assert_eq!(back, [head + 1, head]);
    assert!(!rig.rings.queues[STATS].has_available(&rig.driver.ram).unwrap());
}

#[test]
fn a_new_interval_asks_at_once() {
    let mut rig = with_stats(Duration::from_secs(3600));
    rig.offer_bytes(STATS, &stats(&[(4, 1)]));
    rig.serve(STATS);
    rig.balloon.on_source(0, &mut rig.rings).unwrap();
    assert_eq!(rig.driver.take_used(STATS), None);
    rig.balloon.set_stats_interval(Duration::from_secs(1800));
    rig.balloon.on_source(0, &mut rig.rings).unwrap();
    assert!(rig.driver.take_used(STATS).is_some());
    rig.balloon.on_source(0, &mut rig.rings).unwrap();
    assert_eq!(rig.metrics.stats_update_fails.get(), 0, "the timer runs again");
    let mut quiet = Rig::new(BalloonSpec::default());
    quiet.balloon.set_stats_interval(Duration::from_secs(1));
    quiet.balloon.on_source(0, &mut quiet.rings).unwrap();
}

#[test]
fn a_run_of_hinting() {
    let mut rig = with_hinting();
    rig.balloon.start_hinting(true).unwrap();
    assert_eq!(rig.config()[2], 2);
    rig.send_ranges(HINT, &[(0x500, 2)]);
    assert_eq!((rig.gone(), rig.metrics.free_page_hint_fails.get()), (vec![], 1), "before the command");
    rig.send_command(HINT, 2);
    rig.send_ranges(HINT, &[(0x500, 2), (0x600, 1)]);
    rig.send_ranges(HINT, &[(0x800, 1)]);
    assert!(!rig.balloon.take_config_change());
    rig.send_command(HINT, 0);
    assert!(rig.balloon.take_config_change() && !rig.balloon.take_config_change());
    assert_eq!(rig.balloon.hinting(), HintingStatus { host_cmd: 1, guest_cmd: Some(0) });
    assert_eq!(rig.config()[2], 1);
    assert_eq!(rig.gone(), [0x500, 0x501, 0x600, 0x800]);
    assert_eq!(rig.metrics.free_page_hint_freed.get(), 4 * 4096);
    assert_eq!((rig.metrics.free_page_hint_count.get(), rig.metrics.free_page_hint_fails.get()), (3, 1));
    rig.send_ranges(HINT, &[(0x900, 1)]);
    assert_eq!((rig.keeps(0x900), rig.metrics.free_page_hint_fails.get()), (true, 1), "late, not wrong");
}

#[test]
fn only_the_run_that_was_asked_for_counts() {
    let mut rig = with_hinting();
    rig.balloon.start_hinting(false).unwrap();
    rig.send_command(HINT, 2);
    rig.balloon.start_hinting(false).unwrap();
    rig.send_ranges(HINT, &[(0x500, 1)]);
    assert!(rig.keeps(0x500), "of the run before");
    rig.send_command(HINT, 3);
    rig.send_ranges(HINT, &[(0x501, 1)]);
    rig.send_command(HINT, 0);
    assert_eq!((rig.config()[2], rig.balloon.take_config_change()), (3, false), "nobody wanted it acknowledged");
    rig.balloon.stop_hinting().unwrap();
    assert_eq!((rig.config()[2], rig.gone()), (1, vec![0x501]));
    rig.send_command(HINT, 3);
    rig.send_ranges(HINT, &[(0x502, 1)]);
    assert!(rig.keeps(0x502), "the host has ended it");
    let head = rig.offer_bytes(HINT, &[3, 0, 0]);
    rig.serve(HINT);
    assert_eq!((rig.driver.take_used(HINT), rig.balloon.hinting().guest_cmd), (Some((head, 0)), Some(3)));
}

/// The pages of a hint may be in use by the time the host goes on: a pause lets go of what is left of it.
#[test]
fn a_pause_lets_hints_go() {
    let mut rig = with_hinting();
    rig.balloon.start_hinting(true).unwrap();
    rig.send_command(HINT, 2);
    rig.balloon.hurry();
    let head = rig.offer_ranges(HINT, &[(FIRST, END - FIRST)]);
    rig.ring(HINT);
    assert_eq!(rig.gone().len(), 512);
    rig.balloon.quiesce(&mut rig.rings).unwrap();
    assert_eq!(rig.driver.take_used(HINT), Some((head, 0)));
    rig.serve(HINT);
    assert_eq!(rig.gone().len(), 512);
}

#[test]
fn hinting_needs_a_driver_that_can() {
    let mut rig = with_hinting();
    rig.balloon.reset();
    assert_eq!((rig.balloon.start_hinting(true), rig.balloon.stop_hinting()), (Err(NotActive), Err(NotActive)));
    rig.rings = rig.driver.rings(false, false);
    rig.balloon.activate(with(0), &mut rig.rings).unwrap();
    assert_eq!(rig.balloon.start_hinting(true), Err(NotActive));
    assert_eq!(rig.balloon.hinting(), HintingStatus { host_cmd: 0, guest_cmd: None });
}

/// Queues of features that were not accepted do nothing, whatever is put on them.
#[test]
fn queues_without_a_role_are_left_alone() {
    let spec = BalloonSpec {
        reporting: true,
        hinting: true,
        stats_interval: Some(Duration::from_secs(1)),
        ..BalloonSpec::default()
    };
    let mut rig = Rig::idle(Balloon::new(spec).unwrap(), 5);
    rig.balloon.activate(with(0), &mut rig.rings).unwrap();
    for queue in 2..5 {
        rig.offer_ranges(queue, &[(0x500, 4)]);
        rig.ring(queue);
        assert_eq!(rig.driver.take_used(queue), None);
    }
    rig.balloon.on_doorbell(77, &mut rig.rings).unwrap();
    rig.balloon.on_source(0, &mut rig.rings).unwrap();
    rig.balloon.on_source(5, &mut rig.rings).unwrap();
    assert!(rig.gone().is_empty());
}

/// A reset forgets the request at hand and what the guest said; then all begins anew.
#[test]
fn a_reset_forgets() {
    let spec = BalloonSpec { stats_interval: Some(Duration::from_millis(1)), hinting: true, ..BalloonSpec::default() };
    let mut rig = Rig::new(spec);
    rig.balloon.hurry();
    rig.balloon.start_hinting(true).unwrap();
    rig.offer_bytes(STATS, &stats(&[(4, 1)]));
    rig.serve(STATS);
    rig.offer_pages(INFLATE, &(FIRST..END).collect::<Vec<_>>());
    rig.ring(INFLATE);
    rig.balloon.reset();
    assert_eq!(rig.balloon.stats().get(Stat::FreeMemory), None);
    assert_eq!(rig.config(), [0, 0, 0]);
    let accepted = rig.balloon.features();
    rig.driver = TestDriver::new(4, 64);
    rig.rings = rig.driver.rings(false, false);
    rig.balloon.activate(accepted, &mut rig.rings).unwrap();
    rig.fill();
    rig.send_pages(INFLATE, &[0x700]);
    assert_eq!(rig.gone(), [0x700]);
    rig.balloon.start_hinting(true).unwrap();
    assert_eq!(rig.config()[2], 3, "no command id is used twice");
}

struct Nobody;

impl DoorbellBinder for Nobody {
    fn bind(&self, _index: u16, _bell: &EventFd) -> std::io::Result<()> {
        Ok(())
    }
    fn unbind(&self, _index: u16, _bell: &EventFd) {}
}

/// Through the cell: what the device changes by itself reaches the driver as a new generation and an interrupt.
#[test]
fn the_end_of_hinting_is_announced() {
    let mut driver = TestDriver::new(3, 256);
    let balloon = Balloon::new(BalloonSpec { hinting: true, ..BalloonSpec::default() }).unwrap();
    let device = AnyDevice::Balloon(Box::new(balloon));
    let cell = VirtioCell::new("b".to_owned(), device, driver.ram.clone(), driver.irq.clone(), Arc::new(Nobody));
    let cell = cell.unwrap();
    for status in [1, 3] {
        cell.write_status(status);
    }
    cell.registers(|r| {
        r.select_driver_features(1);
        r.accept_features(1);
        r.select_driver_features(0);
        r.accept_features(8);
    });
    cell.write_status(11);
    for (index, queue) in (0u32..).zip(&driver.queues) {
        cell.registers(|r| {
            r.select_queue(index);
            r.set_queue_size(256);
            let geometry = queue.geometry;
            for (area, address) in [
                (Area::Descriptors, geometry.descriptors),
                (Area::Available, geometry.available),
                (Area::Used, geometry.used),
            ] {
                r.set_queue_address(area, false, address as u32);
                r.set_queue_address(area, true, 0);
            }
            r.set_queue_ready(1);
        });
    }
    cell.write_status(15);
    let everything = || cell.sources().iter().for_each(|source| cell.ready(source.token));
    everything();
    let change = |announce, change: fn(&mut Balloon) -> Result<(), NotActive>| {
        cell.reconfigure(|device| match device {
            AnyDevice::Balloon(balloon) => change(balloon).map(|()| ((), announce)),
            _ => Err(NotActive),
        })
    };
    change(ConfigChange::Announce, |balloon| balloon.start_hinting(true)).unwrap();
    let configs = || driver.irq.config.load(std::sync::atomic::Ordering::Relaxed);
    let (before, generation) = (configs(), cell.registers(|r| r.generation()));
    assert_eq!((before, generation), (1, 1));
    for command in [2u32, 0] {
        driver.ram.write_obj(command, GuestAddress(REQUEST)).unwrap();
        driver.offer(2, &[Buffer { addr: REQUEST, len: 4, writable: false }]);
        everything();
    }
    let configs = driver.irq.config.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((configs, cell.registers(|r| r.generation())), (2, 2));
    let mut word = [0; 4];
    cell.read_config(8, &mut word);
    assert_eq!(u32::from_le_bytes(word), 1);
    let status = cell.look(|device| match device {
        AnyDevice::Balloon(balloon) => Some(balloon.hinting()),
        _ => None,
    });
    assert_eq!(status, Some(HintingStatus { host_cmd: 1, guest_cmd: Some(0) }));
}
