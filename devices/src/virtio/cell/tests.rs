//! Life cycles of a device under its lock, with a drive as the device.

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::block::Engine;
use crate::virtio::block::tests::rig::*;
use crate::virtio::registers::{Area, F_VERSION_1};
use crate::virtio::status::Status;

fn rig() -> Rig {
    Rig::new(disk_of(&pattern(50, 1 << 20)), Engine::Sync, Options::default())
}

fn idle() -> Rig {
    Rig::idle(disk_of(&pattern(50, 1 << 20)), Engine::Sync, false, true)
}

/// As far as FEATURES_OK.
fn negotiate(cell: &VirtioCell) {
    cell.write_status(1);
    cell.write_status(3);
    cell.registers(|r| {
        r.select_driver_features(1);
        r.accept_features((F_VERSION_1 >> 32) as u32);
    });
    cell.write_status(11);
}

fn set_up(cell: &VirtioCell, size: u32, addresses: [u64; 3]) {
    cell.registers(|r| {
        r.select_queue(0);
        r.set_queue_size(size);
        for (area, address) in [Area::Descriptors, Area::Available, Area::Used].into_iter().zip(addresses) {
            r.set_queue_address(area, false, address as u32);
            r.set_queue_address(area, true, (address >> 32) as u32);
        }
        r.set_queue_ready(1);
    });
}

/// G1 and G3, as a driver does it, and the way back.
#[test]
fn bad_geometry_needs_a_reset() {
    let mut rig = idle();
    let good = [0x1000, 0x3000, 0x4000];
    let cases = [
        (0, good),
        (3, good),
        (512, good),
        (65535, good),
        (0x1_0100, good),
        (256, [0x1008, 0x3000, 0x4000]),
        (256, [0x1000, 0x1800, 0x4000]),
        (256, [0x1000, 0x3000, 0xffff_ffff_ffff_f000]),
        (256, [0xd000_0000, 0x3000, 0x4000]),
        (256, [0, 0, 0]),
    ];
    for (count, (size, addresses)) in (1..).zip(cases) {
        negotiate(&rig.cell);
        set_up(&rig.cell, size, addresses);
        rig.cell.write_status(15);
        assert_eq!(rig.status().bits(), 0x4f, "{size} {addresses:x?}");
        assert_eq!(rig.config_interrupts(), count);
        rig.kick();
        rig.events.settle();
        // The driver cannot talk its way out of it.
        rig.cell.write_status(15);
        assert_eq!(rig.status().bits(), 0x4f);
        rig.cell.write_status(0);
        assert_eq!(rig.status(), Status::empty());
        assert_eq!(rig.metrics.activate_fails.get(), count as u64);
    }
    rig.bring_up(0);
    rig.read(0, 512);
}

#[test]
fn driver_ok_without_a_queue_needs_a_reset() {
    let rig = idle();
    negotiate(&rig.cell);
    rig.cell.write_status(15);
    assert_eq!(rig.status().bits(), 0x4f);
}

/// G5: the device does nothing before DRIVER_OK, and nothing out of order gets it there.
#[test]
fn nothing_moves_before_driver_ok() {
    let mut rig = idle();
    rig.kick();
    rig.events.settle();
    rig.cell.write_status(4);
    rig.cell.write_status(15);
    assert_eq!(rig.status().bits(), 11 & !8, "features were not agreed on");
    rig.cell.write_status(0);
    negotiate(&rig.cell);
    let geometry = rig.driver.queues[0].geometry;
    set_up(&rig.cell, 256, [geometry.descriptors, geometry.available, geometry.used]);
    rig.driver.offer_head(0, 0);
    rig.kick();
    rig.events.settle();
    assert!(rig.driver.take_used(0).is_none());
    rig.cell.write_status(15);
    rig.events.settle();
    assert_eq!(rig.driver.take_used(0), Some((0, 0)), "what waited is served, though its bell rang too early");
}

/// G2: the classic of CVE-2026-5747. The old geometry stays, and the device goes on working on it.
#[test]
fn geometry_is_frozen_once_the_driver_is_set_up() {
    let mut rig = rig();
    let metrics = rig.metrics.clone();
    let before = metrics.cfg_fails.get();
    set_up(&rig.cell, 0x8000, [0xdead_0000, 0xdead_0000, 0xdead_0000]);
    rig.cell.registers(|r| r.set_queue_ready(0));
    // Size, two halves of three addresses, ready twice.
    assert_eq!(metrics.cfg_fails.get() - before, 9);
    rig.read(7, 4096);
    assert_eq!(rig.status().bits(), 15);
}

/// G4: one vCPU turns the queue's registers while another says DRIVER_OK and resets; whatever is caught, it is whole and was checked.
#[test]
fn registers_race_with_driver_ok() {
    let rig = idle();
    let stop = AtomicBool::new(false);
    let geometry = rig.driver.queues[0].geometry;
    let good = [geometry.descriptors, geometry.available, geometry.used];
    let cell = &rig.cell;
    let (mut live, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut flip = 0u64;
            while !stop.load(Ordering::Relaxed) {
                flip += 1;
                let bad = [0xffff_ffff_ffff_f000, 0, 0x123];
                if flip.is_multiple_of(2) { set_up(cell, 256, good) } else { set_up(cell, 3, bad) }
            }
        });
        for _ in 0..5_000 {
            negotiate(cell);
            std::thread::yield_now();
            cell.write_status(15);
            rig.events.turn(0);
            cell.ring_doorbell(0);
            rig.events.turn(0);
            match cell.registers(|r| r.status()).bits() {
                15 => live += 1,
                0x4f => refused += 1,
                other => panic!("status {other:#x}"),
            }
            cell.write_status(0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(live + refused, 5_000);
    // The driver above never offers anything, so nothing may have been written anywhere but into the used ring.
    assert_eq!(rig.driver.ram.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
    let mut rig = rig;
    rig.bring_up(0);
    rig.read(0, 512);
}

/// Whoever wants to unplug a device asks that, and must not wait for it.
#[test]
fn a_driver_is_known_without_a_lock() {
    let rig = idle();
    assert!(!rig.cell.is_driven());
    rig.cell.write_status(1);
    assert!(rig.cell.is_driven());
    let held = rig.cell.front.lock().unwrap();
    assert!(rig.cell.is_driven(), "though somebody holds the registers");
    drop(held);
    rig.cell.write_status(0);
    assert!(!rig.cell.is_driven());
    // A device that asks for a reset is still its driver's.
    negotiate(&rig.cell);
    rig.cell.write_status(15);
    assert!(rig.cell.is_driven());
}

/// Two activations may be waiting when the event loop comes round: the second finds the device live and leaves it so.
#[test]
fn a_reset_between_driver_ok_and_the_event_loop() {
    let mut rig = idle();
    for _ in 0..3 {
        negotiate(&rig.cell);
        let geometry = rig.driver.queues[0].geometry;
        set_up(&rig.cell, 256, [geometry.descriptors, geometry.available, geometry.used]);
        rig.cell.write_status(15);
        rig.cell.write_status(0);
    }
    rig.events.settle();
    rig.bring_up(0);
    rig.cell.ready(lane::CONTROL);
    rig.read(0, 512);
    rig.cell.resume();
    rig.read(0, 512);
}

/// A machine may be paused between DRIVER_OK and the activation.
#[test]
fn a_pause_puts_activation_off() {
    let mut rig = idle();
    rig.cell.pause();
    rig.bring_up(0);
    rig.cell.resume();
    rig.read(0, 512);
}

#[test]
fn every_source_can_be_watched() {
    let rig = idle();
    let mut sources = rig.cell.sources();
    sources.sort_by_key(|source| source.fd);
    let mut tokens: Vec<u32> = sources.iter().map(|source| source.token).collect();
    sources.dedup_by_key(|source| source.fd);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!((sources.len(), tokens.len()), (3, 3), "control, doorbell, limiter");
    // Tokens nobody has are harmless.
    for token in [2, 3, 0xffff, lane::DOORBELLS + 1, lane::CONTROL - 1, u32::MAX] {
        rig.cell.ready(token);
    }
}
