//! What a well-behaved driver sees.

use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{Bytes, GuestAddress};

use super::rig::*;
use super::with_engines;
use crate::virtio::block::device::*;
use crate::virtio::block::{Engine, swap_file};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::test_driver::Buffer;

const MIB: usize = 1 << 20;

#[test]
fn reads_and_writes_are_byte_exact() {
    with_engines(|engine| {
        let mut image = pattern(1, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        for (i, (sector, sectors)) in [(0, 1), (1, 7), (100, 64), (2047, 1), (2000, 48)].into_iter().enumerate() {
            let (at, len) = (sector * SECTOR, sectors * SECTOR);
            let range = at as usize..(at + len) as usize;
            assert_eq!(rig.read(sector, len as u32), image[range.clone()]);
            image[range.clone()].copy_from_slice(&pattern(100 + i as u64, len as usize));
            assert_eq!(rig.write(sector, &image[range.clone()]), Answer { status: OK, written: 1 });
            assert_eq!(rig.read(sector, len as u32), image[range]);
        }
        assert_eq!(content(&file), image);
        assert_eq!(rig.request(4, 0, None).1, Answer { status: OK, written: 1 });
        assert_eq!(rig.metrics.flush_count.get(), 1);
        assert_eq!((rig.metrics.read_count.get(), rig.metrics.write_count.get()), (10, 5));
        assert_eq!(rig.metrics.write_bytes.get(), (1 + 7 + 64 + 1 + 48) * SECTOR);
        assert_eq!(rig.metrics.execute_fails.get() + rig.metrics.invalid_reqs_count.get(), 0);
    });
}

/// Header in three pieces, data in odd ones, status in the same descriptor as the end of the data; once by indirect table.
#[test]
fn descriptors_may_be_cut_anywhere() {
    with_engines(|engine| {
        let image = pattern(2, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        let at = rig.place();
        rig.header(at, 0, 9);
        rig.status_at(at + 0x1000 + 1024);
        let cut = |from: u64, len: u32, writable| Buffer { addr: at + from, len, writable };
        let buffers = [
            cut(0, 1, false),
            cut(1, 0, false),
            cut(1, 14, false),
            cut(15, 1, false),
            cut(0x1000, 5, true),
            cut(0x1005, 506, true),
            cut(0x1000 + 511, 514, true),
        ];
        let head = rig.offer(&buffers, at + 0x1000 + 1024);
        rig.kick();
        assert_eq!(rig.wait(head), Answer { status: OK, written: 1025 });
        assert_eq!(rig.bytes(at + 0x1000, 1024), image[9 * 512..11 * 512]);

        // 254 data descriptors behind one indirect descriptor: what SEG_MAX promises.
        let at = rig.place();
        let table = at + 0x8000;
        rig.header(at, 1, 64);
        rig.status_at(at + 16);
        let data = pattern(3, 127 * 512);
        rig.driver.ram.write_slice(&data[..0x7000], GuestAddress(at + 0x1000)).unwrap();
        let spill = rig.place();
        rig.driver.ram.write_slice(&data[0x7000..], GuestAddress(spill)).unwrap();
        rig.driver.write_descriptor(table, 0, at, 16, 1, 1);
        for i in 0..254u64 {
            let from = if i * 256 < 0x7000 { at + 0x1000 + i * 256 } else { spill + i * 256 - 0x7000 };
            rig.driver.write_descriptor(table, i as u16 + 1, from, 256, 1, i as u16 + 2);
        }
        rig.driver.write_descriptor(table, 255, at + 16, 1, 2, 0);
        let descriptors = rig.driver.queues[0].geometry.descriptors;
        rig.driver.write_descriptor(descriptors, 200, table, 256 * 16, 4, 0);
        rig.driver.offer_head(0, 200);
        rig.kick();
        let (head, _) = rig.wait_any();
        assert_eq!((head, rig.bytes(at + 16, 1)), (200, vec![OK]));
        assert_eq!(content(&file)[64 * 512..(64 + 127) * 512], data);
    });
}

#[test]
fn a_batch_is_one_interrupt() {
    with_engines(|engine| {
        let image = pattern(4, MIB);
        for accept in [0, F_EVENT_IDX] {
            let mut rig = Rig::new(disk_of(&image), engine(), Options { accept, ..Options::default() });
            // Two descriptors each: header and 512 bytes of data with the status behind it, 128 chains fill the table.
            let mut heads = Vec::new();
            for i in 0..128u64 {
                let at = rig.place();
                let header = rig.header(at, 0, i);
                rig.status_at(at + 0x1200);
                let data = Buffer { addr: at + 0x1000, len: 513, writable: true };
                heads.push((rig.offer(&[header, data], at + 0x1200), at + 0x1000, i as usize));
            }
            // EVENT_IDX: tell me at the last one.
            let available = rig.driver.queues[0].geometry.available;
            rig.driver.ram.write_obj(127u16, GuestAddress(available + 4 + 2 * 256)).unwrap();
            rig.kick();
            let mut back: Vec<u16> = (0..128)
                .map(|_| {
                    let (head, answer) = rig.wait_any();
                    assert_eq!(answer, Answer { status: OK, written: 513 });
                    head
                })
                .collect();
            rig.events.settle();
            back.sort_unstable();
            assert_eq!(back, heads.iter().map(|h| h.0).collect::<Vec<_>>());
            for (_, at, i) in heads {
                assert_eq!(rig.bytes(at, 512), image[i * 512..(i + 1) * 512]);
            }
            // Page-cache reads finish at once with both engines; disk reads of the async one may come in more than one batch.
            if matches!(engine(), Engine::Sync) || accept != 0 {
                assert_eq!(rig.driver.interrupts(), 1, "features {accept:#x}");
            }
        }
    });
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    with_engines(|engine| {
        let mut rig = Rig::new(disk_of(&pattern(5, MIB)), engine(), Options { accept: 0, ..Options::default() });
        let available = rig.driver.queues[0].geometry.available;
        rig.driver.ram.write_obj(1u16, GuestAddress(available)).unwrap();
        rig.read(0, 4096);
        assert_eq!(rig.driver.interrupts(), 0);
        rig.driver.ram.write_obj(0u16, GuestAddress(available)).unwrap();
        rig.read(0, 4096);
        assert_eq!(rig.driver.interrupts(), 1);
    });
}

#[test]
fn discard_and_zeroes() {
    with_engines(|engine| {
        let mut image = pattern(6, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        let done = Answer { status: OK, written: 1 };
        for (sector, sectors, flags) in [(8u64, 8u32, 0), (64, 128, 1), (1001, 3, 0), (1011, 5, 1), (2047, 1, 0)] {
            assert_eq!(rig.range(13, sector, sectors, flags), done);
            image[sector as usize * 512..(sector as usize + sectors as usize) * 512].fill(0);
            assert_eq!(content(&file), image, "zeroes {sector}+{sectors}");
        }
        let before = file.metadata().unwrap().blocks();
        assert_eq!(rig.range(11, 1024, 512, 0), done);
        assert_eq!(file.metadata().unwrap().len(), MIB as u64);
        assert!(file.metadata().unwrap().blocks() < before, "nothing was given back");
        image[1024 * 512..1536 * 512].fill(0);
        assert_eq!(content(&file), image);
        assert_eq!((rig.metrics.discard_count.get(), rig.metrics.write_zeroes_count.get()), (1, 5));
    });
}

#[test]
fn identity_is_the_files() {
    with_engines(|engine| {
        let file = disk_of(&[0; 4096]);
        let metadata = file.metadata().unwrap();
        let mut expected = format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino()).into_bytes();
        expected.resize(20, 0);
        let mut rig = Rig::new(file, engine(), Options::default());
        let (at, answer) = rig.request(8, 0, Some((20, true)));
        assert_eq!(answer, Answer { status: OK, written: 21 });
        assert_eq!(rig.bytes(at, 20), expected);
        let (at, answer) = rig.request(8, 0, Some((64, true)));
        assert_eq!(answer, Answer { status: OK, written: 20 });
        assert_eq!(rig.bytes(at, 20), expected);
        assert_eq!(rig.request(8, 0, Some((19, true))).1.status, IOERR);
    });
}

#[test]
fn features_follow_the_spec() {
    let base = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
    let of = |read_only, writeback| Rig::idle(disk_of(&[0; 512]), Engine::Sync, read_only, writeback).features();
    assert_eq!(of(false, false), base | F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(of(false, true), base | F_DISCARD | F_WRITE_ZEROES | F_FLUSH);
    assert_eq!(of(true, false), base | F_RO);
}

#[test]
fn a_tail_that_is_no_sector_is_left_out() {
    let capacity = |rig: &Rig| {
        let mut bytes = [0; 8];
        rig.cell.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let image = pattern(7, 512 * 3 + 511);
    let file = disk_of(&image);
    let mut rig = Rig::new(file.try_clone().unwrap(), Engine::Sync, Options::default());
    assert_eq!(capacity(&rig), 3);
    assert_eq!(rig.request(0, 3, Some((512, true))).1.status, IOERR);
    assert_eq!(rig.write(3, &[0; 512]).status, IOERR);
    assert_eq!(content(&file), image);
    assert_eq!(capacity(&Rig::new(disk_of(b"x"), Engine::Sync, Options::default())), 0);
}

#[test]
fn a_swapped_file_is_announced() {
    with_engines(|engine| {
        let (first, second) = (pattern(8, MIB), pattern(9, 2 * MIB));
        let old = disk_of(&first);
        let mut rig = Rig::new(old.try_clone().unwrap(), engine(), Options::default());
        assert_eq!(rig.read(0, 4096), first[..4096]);
        let generation = rig.cell.registers(|r| r.generation());
        let new = disk_of(&second);
        let handed_over = new.try_clone().unwrap();
        swap_file(&rig.cell, BackingFile::new(handed_over).unwrap()).unwrap();
        assert_eq!(rig.config_interrupts(), 1);
        assert_ne!(rig.cell.registers(|r| r.generation()), generation);
        let mut capacity = [0; 8];
        rig.cell.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 4096);
        assert_eq!(rig.read(3000, 4096), second[3000 * 512..3008 * 512]);
        assert_eq!(rig.write(0, &[5; 512]).status, OK);
        assert_eq!((content(&new)[..512].to_vec(), content(&old)), (vec![5; 512], first));
        assert_eq!(rig.metrics.update_count.get(), 1);
    });
}

#[test]
fn a_file_of_another_size_is_announced_after_a_restore() {
    let (old, new) = (disk_of(&pattern(8, MIB)), disk_of(&pattern(9, 2 * MIB)));
    let rig = Rig::new(old.try_clone().unwrap(), Engine::Sync, Options::default());
    let generation = rig.cell.registers(|r| r.generation());
    rig.cell.pause();
    let state = rig.cell.save().unwrap();
    for (file, announced) in [(&old, 0), (&new, 1)] {
        let next = Rig::idle(file.try_clone().unwrap(), Engine::Sync, false, true);
        next.cell.restore(&state).unwrap();
        assert_eq!(next.cell.save().unwrap(), state, "the driver has not heard of it yet");
        next.cell.resume();
        assert_eq!(next.config_interrupts(), announced);
        assert_eq!(next.cell.registers(|r| r.generation()), generation + announced);
        next.cell.pause();
        assert_eq!(next.cell.save().unwrap().config == state.config, announced == 0);
    }
}

#[test]
fn a_file_cut_short_fails_requests_only() {
    with_engines(|engine| {
        let image = pattern(10, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        file.set_len(4096 + 100).unwrap();
        assert_eq!(rig.read(0, 4096), image[..4096]);
        assert_eq!(rig.request(0, 8, Some((512, true))).1, Answer { status: IOERR, written: 0 });
        assert_eq!(rig.request(0, 100, Some((512, true))).1, Answer { status: IOERR, written: 0 });
        assert_eq!(rig.metrics.execute_fails.get(), 2);
        assert_eq!(rig.read(0, 4096), image[..4096]);
    });
}

#[test]
fn paused_drives_wait_and_shutdown_answers() {
    with_engines(|engine| {
        let image = pattern(11, MIB);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        rig.cell.pause();
        let at = rig.place();
        let header = rig.header(at, 0, 1);
        let status = rig.status_at(at + 16);
        let head = rig.offer(&[header, Buffer { addr: at + 0x1000, len: 512, writable: true }, status], at + 16);
        rig.kick();
        rig.events.settle();
        assert!(rig.driver.take_used(0).is_none(), "served while paused");
        rig.cell.resume();
        assert_eq!(rig.wait(head), Answer { status: OK, written: 513 });
        assert_eq!(rig.bytes(at + 0x1000, 512), image[512..1024]);
        rig.cell.shut_down().unwrap();
        file.write_all_at(&[1], 0).unwrap();
    });
}
