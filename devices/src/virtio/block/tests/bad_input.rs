//! Drivers that break the rules: each request is refused, the file stays as it is, and the device goes on working.

use vm_memory::{Bytes, GuestAddress};

use super::rig::*;
use super::with_engines;
use crate::virtio::status::Status;
use crate::virtio::test_driver::Buffer;

const LEN: usize = 64 * 512;

#[test]
fn ranges_outside_the_device() {
    with_engines(|engine| {
        let image = pattern(20, LEN);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        let sectors = [
            (64, 512),
            (63, 1024),
            (0, LEN as u32 + 512),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
            (1 << 55, 512),
            (i64::MAX as u64 / 512, 512),
        ];
        let mut refused = 0;
        for (sector, len) in sectors {
            assert_eq!(rig.request(0, sector, Some((len, true))).1, Answer { status: IOERR, written: 0 });
            assert_eq!(rig.request(1, sector, Some((len, false))).1, Answer { status: IOERR, written: 1 });
            assert_eq!(rig.range(11, sector, len / 512, 0).status, IOERR, "discard {sector}");
            assert_eq!(rig.range(13, sector, len / 512, 0).status, IOERR, "zeroes {sector}");
            refused += 4;
        }
        for (kind, most) in [(11, (1 << 22) + 1), (13, (1 << 16) + 1), (11, u32::MAX), (13, u32::MAX), (11, 0), (13, 0)]
        {
            assert_eq!(rig.range(kind, 0, most, 0).status, IOERR, "{kind} {most}");
            refused += 1;
        }
        for (kind, flags) in [(11, 1), (11, 2), (13, 2), (13, 0x8000_0000)] {
            assert_eq!(rig.range(kind, 0, 1, flags).status, UNSUPP, "{kind} {flags}");
            refused += 1;
        }
        assert_eq!(rig.metrics.invalid_reqs_count.get(), refused);
        assert_eq!(content(&file), image);
        assert_eq!(rig.read(63, 512), image[LEN - 512..]);
        assert_eq!(rig.status(), Status::from_bits_truncate(15));
    });
}

#[test]
fn lengths_and_kinds_that_make_no_sense() {
    with_engines(|engine| {
        let image = pattern(21, LEN);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        for len in [1, 511, 513, 1023] {
            assert_eq!(rig.request(0, 0, Some((len, true))).1.status, IOERR, "read {len}");
            assert_eq!(rig.request(1, 0, Some((len, false))).1.status, IOERR, "write {len}");
        }
        for kind in [0, 1] {
            assert_eq!(rig.request(kind, 0, None).1.status, IOERR, "no data");
            assert_eq!(rig.request(kind, 0, Some((0, kind == 0))).1.status, IOERR, "empty data");
        }
        // The direction is the descriptor's, not the header's.
        assert_eq!(rig.request(0, 0, Some((512, false))).1.status, IOERR);
        let (at, answer) = rig.request(1, 0, Some((512, true)));
        assert_eq!((answer.status, rig.bytes(at, 512)), (IOERR, vec![0; 512]));
        for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, 0x8000_0001, u32::MAX] {
            assert_eq!(rig.request(kind, 0, Some((512, true))).1.status, UNSUPP, "kind {kind:#x}");
        }
        // Ranges: none, half, and two where one is allowed.
        for kind in [11, 13] {
            for len in [0, 8, 15, 17, 32] {
                assert_eq!(rig.request(kind, 0, Some((len, false))).1.status, IOERR, "{kind} with {len} bytes");
            }
        }
        assert_eq!(content(&file), image);
        assert_eq!(rig.read(0, 512), image[..512]);
    });
}

#[test]
fn without_a_place_for_the_status() {
    with_engines(|engine| {
        let image = pattern(22, LEN);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        let at = rig.place();
        let readable = |addr, len| Buffer { addr, len, writable: false };
        let chains = [
            // Status read-only, status missing, status of no length, and nothing at all.
            vec![rig.header(at, 1, 0), readable(at + 0x1000, 512), readable(at + 16, 1)],
            vec![rig.header(at, 1, 0), readable(at + 0x1000, 512)],
            vec![rig.header(at, 1, 0), Buffer { addr: at + 16, len: 0, writable: true }],
            vec![readable(at, 0)],
        ];
        rig.status_at(at + 16);
        let count = chains.len() as u64;
        for chain in chains {
            let head = rig.offer(&chain, at + 16);
            rig.kick();
            assert_eq!(rig.wait(head), Answer { status: UNTOUCHED, written: 0 });
        }
        assert_eq!(rig.metrics.invalid_reqs_count.get(), count);
        // A header cut short has a place for the status, and gets one.
        for len in [0, 1, 15] {
            let status = rig.status_at(at + 16);
            let head = rig.offer(&[readable(at, len), status], at + 16);
            rig.kick();
            assert_eq!(rig.wait(head), Answer { status: IOERR, written: 1 });
        }
        assert_eq!(content(&file), image);
        assert_eq!(rig.read(0, 512), image[..512]);
    });
}

/// Whether or not the driver accepted VIRTIO_BLK_F_RO, and though the file could be written.
#[test]
fn read_only_means_it() {
    with_engines(|engine| {
        for accept in [0, crate::virtio::block::device::F_RO] {
            let image = pattern(23, LEN);
            let file = disk_of(&image);
            let options = Options { read_only: true, writeback: false, accept, ..Options::default() };
            let mut rig = Rig::new(file.try_clone().unwrap(), engine(), options);
            assert_eq!(rig.write(0, &[1; 512]).status, IOERR);
            assert_eq!(rig.range(11, 0, 8, 0).status, IOERR);
            assert_eq!(rig.range(13, 0, 8, 1).status, IOERR);
            assert_eq!(rig.request(4, 0, None).1.status, UNSUPP, "FLUSH was not offered");
            assert_eq!(rig.read(0, 4096), image[..4096]);
            assert_eq!(content(&file), image);
        }
    });
}

/// The host cannot write though the drive is writable: the operator's mistake must not look like success.
#[test]
fn host_errors_are_errors() {
    with_engines(|engine| {
        let image = pattern(24, LEN);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &image).unwrap();
        let read_only = std::fs::File::open(file.path()).unwrap();
        let mut rig = Rig::new(read_only, engine(), Options::default());
        assert_eq!(rig.write(0, &[1; 512]), Answer { status: IOERR, written: 1 });
        assert_eq!(rig.range(11, 0, 8, 0).status, IOERR);
        assert_eq!(rig.metrics.execute_fails.get(), 2);
        assert_eq!(rig.read(0, 512), image[..512]);
    });
}

#[test]
fn loops_and_bad_tables_come_back_empty() {
    with_engines(|engine| {
        let image = pattern(25, LEN);
        let file = disk_of(&image);
        let mut rig = Rig::new(file.try_clone().unwrap(), engine(), Options::default());
        let table = rig.driver.queues[0].geometry.descriptors;
        let at = rig.place();
        rig.header(at, 1, 0);
        let write = |rig: &Rig, index, addr, len, flags, next| {
            rig.driver.write_descriptor(table, index, addr, len, flags, next);
        };
        // G6: to itself, to each other, out of the table; G7: nested, not 16s, none, 4 GiB, outside RAM.
        write(&rig, 200, at, 16, 1, 200);
        write(&rig, 201, at, 16, 1, 202);
        write(&rig, 202, at, 16, 1, 201);
        write(&rig, 203, at, 16, 1, 256);
        write(&rig, 204, at, 16, 1, u16::MAX);
        let inner = at + 0x8000;
        rig.driver.write_descriptor(inner, 0, inner, 16, 4, 0);
        write(&rig, 205, inner, 16, 4, 0);
        write(&rig, 206, inner, 17, 4, 0);
        write(&rig, 207, inner, 0, 4, 0);
        write(&rig, 208, inner, !15, 4, 0);
        write(&rig, 209, !15, 16, 4, 0);
        write(&rig, 210, u64::MAX - 8, 16, 0, 0);
        write(&rig, 211, inner, 16, 5, 212);
        for head in 200..=211 {
            if head == 202 {
                continue;
            }
            rig.driver.offer_head(0, head);
            rig.kick();
            assert_eq!(rig.wait_any(), (head, Answer { status: 0, written: 0 }), "head {head}");
        }
        assert_eq!(content(&file), image);
        assert_eq!(rig.read(0, 512), image[..512]);
    });
}

#[test]
fn broken_rings_need_a_reset_and_recover() {
    with_engines(|engine| {
        let image = pattern(26, LEN);
        let mut rig = Rig::new(disk_of(&image), engine(), Options::default());
        type Break = fn(&mut Rig);
        let ways: [(&str, Break); 3] = [
            ("head outside the table", |rig| rig.driver.offer_head(0, 256)),
            ("index too far ahead", |rig| {
                let available = rig.driver.queues[0].geometry.available;
                rig.driver.ram.write_obj(1000u16, GuestAddress(available + 2)).unwrap();
            }),
            ("a whole ring of nonsense", |rig| {
                let table = rig.driver.queues[0].geometry.descriptors;
                rig.driver.write_descriptor(table, 0, u64::MAX, 1, 0, 0);
                for _ in 0..256 {
                    rig.driver.offer_head(0, 0);
                }
            }),
        ];
        for (what, break_it) in ways {
            assert_eq!(rig.read(1, 512), image[512..1024], "before {what}");
            break_it(&mut rig);
            rig.kick();
            rig.events.settle();
            if what != "a whole ring of nonsense" {
                assert!(rig.status().contains(Status::NEEDS_RESET), "{what}");
            }
            rig.cell.write_status(0);
            assert_eq!(rig.status(), Status::empty());
            rig.bring_up(0);
            assert_eq!(rig.status(), Status::from_bits_truncate(15), "after {what}");
        }
        assert_eq!(rig.read(1, 512), image[512..1024]);
    });
}
