//! Requests that are in flight when something else happens.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::rig::*;
use super::with_engines;
use crate::event::Subscriber;
use crate::ram;
use crate::virtio::block::engine::{Disk, Finished, Uring, Work};
use crate::virtio::block::{BackingFile, Engine, UringHub, swap_file};
use crate::virtio::registers::F_EVENT_IDX;
use crate::virtio::test_driver::{Buffer, TestDriver};

const MIB: usize = 1 << 20;

/// One drive's thread may be the one that picks up another drive's completion; the other must hear of it all the same.
#[test]
fn no_completion_is_lost_between_drives() {
    let hub = UringHub::new(2).unwrap();
    let mut quiet = Rig::new(disk_of(&pattern(30, MIB)), Engine::Async(hub.clone()), Options::default());
    let mut busy = Rig::new(disk_of(&pattern(31, MIB)), Engine::Async(hub), Options::default());
    // The busy drive's own loop does not listen to the hub, so that only `quiet` can wake `quiet`.
    busy.events = Loop::new();
    busy.events.add(busy.cell.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let hammer = std::thread::spawn(move || {
        let mut reads = 0u64;
        while !stopped.load(Ordering::Relaxed) {
            busy.read(0, 512);
            reads += 1;
        }
        reads
    });
    for _ in 0..3000 {
        // A flush always takes the way over a kernel thread.
        assert_eq!(quiet.request(4, 0, None).1.status, OK);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(hammer.join().unwrap() > 0);
}

/// A read from an empty pipe stays in flight until something is written: the one way to be sure that a drain has to wait.
#[test]
fn a_drain_waits_for_its_own_work_and_holds_up_nobody() {
    let hub = UringHub::new(2).unwrap();
    let memory = TestDriver::new(1, 256).ram;
    let piece = |addr| ram::piece(&memory, GuestAddress(addr), 512).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut stuck = Uring::new(hub.clone(), std::fs::File::from(std::os::fd::OwnedFd::from(reader)).into()).unwrap();
    let mut other = Uring::new(hub.clone(), disk_of(&pattern(32, MIB)).into()).unwrap();
    let mut finished: Vec<Finished> = Vec::new();
    stuck.submit(3, Work::Read { offset: 0, pieces: &[piece(0x1000)] });
    stuck.reap(&mut finished);
    assert!(finished.is_empty());

    let drained = Arc::new(AtomicBool::new(false));
    let flag = drained.clone();
    let drain = std::thread::spawn(move || {
        stuck.drain(&mut finished);
        flag.store(true, Ordering::SeqCst);
        finished
    });
    // Meanwhile another drive works, and drains as well.
    for round in 0..500u16 {
        let mut done = Vec::new();
        other.submit(round % 256, Work::Flush);
        other.submit((round + 1) % 256, Work::Read { offset: 512, pieces: &[piece(0x2000)] });
        other.drain(&mut done);
        assert!(done.len() == 2 && done.iter().all(|f| f.result.is_ok()), "{done:?}");
    }
    assert!(!drained.load(Ordering::SeqCst), "the drain did not wait");
    // The end of a pipe is the end of a file, and 100 bytes are a short read: both are seen to.
    writer.write_all(&[7; 100]).unwrap();
    drop(writer);
    let finished = drain.join().unwrap();
    assert_eq!(finished.len(), 1);
    assert_eq!(finished[0].tag, 3);
    assert_eq!(finished[0].result.as_ref().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    let mut bytes = [0; 101];
    memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
    assert_eq!((bytes[..100].to_vec(), bytes[100]), (vec![7; 100], 0));
}

/// Offers 60 reads, 3 writes and a flush without ringing; returns where the reads go.
fn load(rig: &mut Rig) -> Vec<u64> {
    let mut places = Vec::new();
    for i in 0..64u64 {
        let at = rig.place();
        let kind = match i {
            63 => 4,
            60..63 => 1,
            _ => 0,
        };
        let mut buffers = vec![rig.header(at, kind, if kind == 4 { 0 } else { i * 8 })];
        if kind != 4 {
            rig.driver.ram.write_slice(&[0; 4096], GuestAddress(at + 0x1000)).unwrap();
            buffers.push(Buffer { addr: at + 0x1000, len: 4096, writable: kind == 0 });
            if kind == 0 {
                places.push(at + 0x1000);
            }
        }
        buffers.push(rig.status_at(at + 16));
        rig.offer(&buffers, at + 16);
    }
    places
}

/// G11: when the reset has returned, guest memory is the guest's.
#[test]
fn a_reset_leaves_nothing_in_flight() {
    with_engines(|engine| {
        let mut rig = Rig::new(disk_of(&pattern(33, MIB)), engine(), Options::default());
        for round in 0..150u8 {
            let places = load(&mut rig);
            rig.kick();
            // As many event loop turns as it takes to be anywhere between nothing served and all done.
            for _ in 0..round % 4 {
                rig.events.turn(0);
            }
            // Resets come from vCPU threads.
            let cell = rig.cell.clone();
            std::thread::spawn(move || cell.write_status(0)).join().unwrap();
            for place in &places {
                rig.driver.ram.write_slice(&[round; 4096], GuestAddress(*place)).unwrap();
            }
            rig.events.settle();
            for place in &places {
                assert!(rig.bytes(*place, 4096).iter().all(|b| *b == round), "written to after the reset");
            }
            rig.bring_up(F_EVENT_IDX);
        }
        rig.read(0, 4096);
    });
}

/// The reset comes while the event loop is in the middle of things.
#[test]
fn resets_race_with_the_event_loop() {
    with_engines(|engine| {
        let mut rig = Rig::new(disk_of(&pattern(34, MIB)), engine(), Options::default());
        for _ in 0..100 {
            load(&mut rig);
            rig.kick();
            let cell = rig.cell.clone();
            let vcpu = std::thread::spawn(move || cell.write_status(0));
            rig.events.settle();
            vcpu.join().unwrap();
            rig.events.settle();
            rig.bring_up(0);
        }
        rig.read(0, 4096);
    });
}

#[test]
fn pauses_and_swapped_files_answer_everything_once() {
    with_engines(|engine| {
        let image = pattern(35, MIB);
        let mut rig = Rig::new(disk_of(&image), engine(), Options::default());
        for round in 0..100 {
            let places = load(&mut rig);
            rig.kick();
            rig.events.turn(0);
            let swapped = round % 2 == 0;
            if swapped {
                let file = disk_of(&image);
                swap_file(&rig.cell, BackingFile::new(file).unwrap()).unwrap();
            } else {
                rig.cell.pause();
                // Nothing is in flight, so whatever came back came back for good.
                rig.cell.resume();
            }
            let mut heads: Vec<u16> = (0..64)
                .map(|_| {
                    let (head, answer) = rig.wait_any();
                    assert_eq!(answer.status, OK);
                    head
                })
                .collect();
            rig.events.settle();
            assert!(rig.driver.take_used(0).is_none(), "answered twice");
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), 64);
            for (place, sector) in places.iter().zip((0..).step_by(8)) {
                assert_eq!(rig.bytes(*place, 4096), image[sector * 512..][..4096], "round {round}");
            }
        }
        assert_eq!(rig.metrics.update_count.get(), 50);
    });
}

/// With one slot per head, a chain in flight cannot be in flight again; the driver is broken.
#[test]
fn the_same_chain_twice_needs_a_reset() {
    let hub = UringHub::new(1).unwrap();
    let mut rig = Rig::new(disk_of(&pattern(36, MIB)), Engine::Async(hub.clone()), Options::default());
    let at = rig.place();
    let header = rig.header(at, 4, 0);
    let status = rig.status_at(at + 16);
    let head = rig.offer(&[header, status], at + 16);
    rig.driver.offer_head(0, head);
    rig.kick();
    rig.events.settle();
    assert!(rig.status().contains(crate::virtio::status::Status::NEEDS_RESET));
    rig.cell.write_status(0);
    rig.bring_up(0);
    rig.read(0, 512);
    assert_eq!(hub.sources().len(), 1);
}

#[test]
fn seats_are_given_back() {
    let hub = UringHub::new(2).unwrap();
    let drive = || Uring::new(hub.clone(), disk_of(&[0; 512]).into());
    let (first, second) = (drive().unwrap(), drive().unwrap());
    assert!(drive().is_err());
    assert_eq!((first.seat(), second.seat()), (Some(0), Some(1)));
    drop(first);
    assert_eq!(drive().unwrap().seat(), Some(0));
}
