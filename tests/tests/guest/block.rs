//! The drive, with both engines: what the guest wrote is in the file, what is in the file the guest reads.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use guest::{Block, BlockOp, End, Job, Mode, Report, Transfer, Workload, pattern};
use mayfly_tests::{Disk, PATIENCE, Vmm};
use serde_json::json;

use super::pass_bar::{LINES_MAX, PassBar, thread_ticks};
use super::{configured, number, run};

const ENGINES: [&str; 2] = ["Sync", "Async"];
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

fn block(op: BlockOp, sector: u64, sectors: u64, seed: u64) -> Block {
    Block { sector, sectors, seed, ..Block::new(op) }
}

/// Runs one operation on a drive and returns the report.
#[track_caller]
fn operate(path: &Path, engine: &str, what: Block, more: serde_json::Value) -> (Vmm, Report) {
    let vmm = configured(&Job::new(Mode::Block(what)));
    let mut body = json!({"drive_id": "d", "path_on_host": path, "is_root_device": false, "io_engine": engine});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    vmm.put("/drives/d", &body).expect_204();
    let report = run(&vmm);
    (vmm, report)
}

#[track_caller]
fn good(report: &Report) {
    assert_eq!((number(report, "errors"), number(report, "mismatches")), (0, 0), "{report:?}");
}

fn expected(seed: u64, first: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    for (sector, chunk) in (first..).zip(bytes.chunks_exact_mut(SECTOR as usize)) {
        pattern::fill(seed, sector, chunk);
    }
    bytes
}

#[test]
fn written_sectors_are_in_the_file_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let shapes = [(1, false, false), (7, false, true), (32, true, false), (5, true, true)];
    for engine in ENGINES {
        for (n, (chain, indirect, event_idx)) in shapes.into_iter().enumerate() {
            let disk = Disk::sparse(dir.path(), &format!("{engine}{n}"), 4 * MIB).unwrap();
            let mut what = block(BlockOp::Write, 100, 3000, 7);
            what.transfer = Transfer { request_sectors: 64, chain, indirect, event_idx };
            good(&operate(disk.path(), engine, what, json!({})).1);
            assert!(
                disk.read(100 * SECTOR, (3000 * SECTOR) as usize).unwrap() == expected(7, 100, 3000),
                "{engine} {n}"
            );
            assert!(disk.read(0, (100 * SECTOR) as usize).unwrap().iter().all(|b| *b == 0));
            assert!(disk.read(3100 * SECTOR, 512).unwrap().iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn the_guest_reads_what_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let disk = Disk::sparse(dir.path(), engine, 2 * MIB).unwrap();
        disk.write(8 * SECTOR, &expected(3, 8, 2000)).unwrap();
        let (_, report) = operate(disk.path(), engine, block(BlockOp::Verify, 8, 2000, 3), json!({}));
        good(&report);
        // The same with one byte off must be noticed, or this test proves nothing.
        let byte = disk.read(900 * SECTOR, 1).unwrap();
        disk.write(900 * SECTOR, &[!byte[0]]).unwrap();
        let (_, report) = operate(disk.path(), engine, block(BlockOp::Verify, 8, 2000, 3), json!({}));
        assert_eq!(number(&report, "mismatches"), 1, "{report:?}");
    }
}

#[test]
fn flush_discard_and_zeroes_do_what_they_say() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for engine in ENGINES {
        let disk = Disk::patterned(dir.path(), engine, 4 * MIB, 9).unwrap();
        let full = std::fs::metadata(disk.path()).unwrap().blocks();
        let (_, report) =
            operate(disk.path(), engine, block(BlockOp::Flush, 0, 0, 0), json!({"cache_type": "Writeback"}));
        good(&report);

        good(&operate(disk.path(), engine, block(BlockOp::Discard, 2048, 2048, 0), json!({})).1);
        assert!(disk.read(MIB, MIB as usize).unwrap().iter().all(|b| *b == 0), "{engine}");
        let holed = std::fs::metadata(disk.path()).unwrap().blocks();
        assert!(holed < full, "{engine}: discarding gives {holed} of {full} blocks back");

        good(&operate(disk.path(), engine, block(BlockOp::WriteZeroes, 4096, 2048, 0), json!({})).1);
        assert!(disk.read(2 * MIB, MIB as usize).unwrap().iter().all(|b| *b == 0), "{engine}");
        let mut rest = vec![0; MIB as usize];
        mayfly_tests::disk::pattern(9, 3 * MIB, &mut rest);
        assert!(disk.read(3 * MIB, MIB as usize).unwrap() == rest, "{engine}: the rest is untouched");
    }
}

#[test]
fn a_read_only_drive_refuses_writes_and_its_file_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let disk = Disk::patterned(dir.path(), engine, MIB, 5).unwrap();
        let before = disk.read(0, MIB as usize).unwrap();
        for op in [BlockOp::Write, BlockOp::Discard, BlockOp::WriteZeroes] {
            let (_, report) = operate(disk.path(), engine, block(op, 0, 8, 1), json!({"is_read_only": true}));
            assert!(number(&report, "errors") > 0, "{op:?}: {report:?}");
        }
        assert!(disk.read(0, MIB as usize).unwrap() == before, "{engine}");
    }
}

#[test]
fn the_id_is_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let (_, report) = operate(disk.path(), "Sync", Block::new(BlockOp::GetId), json!({}));
    let meta = std::fs::metadata(disk.path()).unwrap();
    let digits = format!("{}{}{}", meta.dev(), meta.rdev(), meta.ino());
    assert_eq!(super::text(&report, "id"), &digits[..digits.len().min(20)]);
}

/// The guest learns a drive's new size while it runs: the generation moves, the interrupt status says why, the fields are new.
#[test]
fn a_swapped_file_tells_the_guest_its_size() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, larger, smaller) in [("Sync", 3 * MIB, MIB), ("Async", 5 * MIB, MIB / 2)] {
        for (n, new, paused) in [(0, larger, false), (1, smaller, true)] {
            let old = Disk::sparse(dir.path(), &format!("{engine}-old{n}"), 2 * MIB).unwrap();
            let swapped = Disk::sparse(dir.path(), &format!("{engine}-new{n}"), new).unwrap();
            let vmm = configured(&Job::new(Mode::Watch));
            vmm.drive("d", old.path(), engine);
            vmm.instance_start();
            let line = vmm.wait_for_line("watch=started", PATIENCE);
            assert!(line.ends_with(&format!("capacity={}", 2 * MIB / SECTOR)), "{line}");
            let state = |state: &str| vmm.patch("/vm", &json!({"state": state})).expect_204();
            if paused {
                state("Paused");
            }
            vmm.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": swapped.path()})).expect_204();
            if paused {
                state("Resumed");
            }
            let report = super::finish(&vmm);
            assert_eq!(number(&report, "changed"), 1, "{report:?}");
            assert_eq!((number(&report, "signalled"), number(&report, "acknowledged")), (1, 1), "{report:?}");
            assert_eq!(number(&report, "new_capacity"), new / SECTOR);
            assert_eq!((number(&report, "last"), number(&report, "beyond")), (0, 1), "{report:?}");
        }
    }
}

/// F6 again, in the middle of the work: reads fail from then on, nothing else does, and a new file brings the drive back.
#[test]
fn a_file_that_shrinks_under_load_costs_errors_only() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let disk = Disk::patterned(dir.path(), engine, 4 * MIB, 5).unwrap();
        let spare = Disk::patterned(dir.path(), &format!("{engine}-spare"), 4 * MIB, 6).unwrap();
        let load = Workload {
            write: false,
            random: false,
            block_bytes: 4096,
            depth: 8,
            ops: u64::MAX,
            drive: 0,
            transfer: Transfer::default(),
        };
        let vmm = configured(&Job::new(Mode::BenchBlock(load)));
        vmm.drive("d", disk.path(), engine);
        vmm.instance_start();
        let read = || {
            let io = std::fs::read_to_string(format!("/proc/{}/io", vmm.pid())).unwrap();
            io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
        };
        // Reads by io_uring are not accounted to anyone; the time the vCPU takes is.
        let works = |ticks: u64| {
            let deadline = std::time::Instant::now() + PATIENCE;
            let now = || thread_ticks(&vmm, "vcpu 0").unwrap_or(0);
            let (start, start_read) = (now(), read());
            while now() < start + ticks || (engine == "Sync" && read() < start_read + MIB) {
                assert!(std::time::Instant::now() < deadline, "{engine}: no progress\n{}", vmm.said());
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        };
        works(5);
        let bar = PassBar::before(&vmm);
        File::options().write(true).open(disk.path()).unwrap().set_len(MIB).unwrap();
        vmm.wait_for_log("drive: ", PATIENCE);
        works(10);
        bar.check_busy(&vmm, LINES_MAX);
        vmm.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": spare.path()})).expect_204();
        let failures = || vmm.log().matches("drive: ").count();
        let before = failures();
        works(10);
        assert_eq!(failures(), before, "{engine}: the new file has everything\n{}", vmm.log());
        vmm.signal(libc::SIGTERM);
        assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
    }
}

/// F6: the host cuts the file under a running drive. The guest gets errors, the monitor lives and ends in good order.
#[test]
fn a_file_that_shrinks_costs_errors_only() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let disk = Disk::patterned(dir.path(), engine, 4 * MIB, 5).unwrap();
        let vmm = configured(&Job::new(Mode::Block(block(BlockOp::Read, 0, 8192, 0))));
        vmm.drive("d", disk.path(), engine);
        std::fs::OpenOptions::new().write(true).open(disk.path()).unwrap().set_len(MIB).unwrap();
        // The size was taken when the drive was configured or the machine started: either way nothing may break.
        let report = run(&vmm);
        let (errors, capacity) = (number(&report, "errors"), number(&report, "capacity"));
        assert!(errors > 0 || capacity == MIB / SECTOR, "{engine}: {report:?}");
    }
}

/// R2's little sister: a full disk is an I/O error in the guest, not the monitor's end.
#[test]
fn a_full_disk_costs_errors_only() {
    mayfly_tests::binary::require_root();
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        assert!(std::process::Command::new(args[0]).args(&args[1..]).status().unwrap().success(), "{args:?}");
    };
    let at = dir.path().to_str().unwrap();
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at]);
    for engine in ENGINES {
        let disk = Disk::sparse(dir.path(), engine, 8 * MIB).unwrap();
        let (vmm, report) = operate(disk.path(), engine, block(BlockOp::Write, 0, 8192, 1), json!({}));
        assert!(number(&report, "errors") > 0, "{engine}: {report:?}");
        assert!(vmm.log().lines().count() < 50, "{}", vmm.log());
        std::fs::remove_file(disk.path()).unwrap();
    }
    mount(&["umount", at]);
}

/// The format of a file is never looked at: a header a guest wrote changes nothing (G10).
#[test]
fn a_qcow2_header_in_a_raw_drive_stays_data() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "host file").unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.resize(512, 0);
    header[8..16].copy_from_slice(&112u64.to_be_bytes());
    header.splice(112..112, secret.to_str().unwrap().bytes());
    header.resize(512, 0);
    disk.write(0, &header).unwrap();
    for engine in ENGINES {
        let vmm = configured(&Job::new(Mode::Block(block(BlockOp::Read, 0, 1, 0))).end(End::Spin));
        vmm.drive("d", disk.path(), engine);
        vmm.instance_start();
        vmm.wait_for_line(guest::DONE, PATIENCE);
        let open = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap();
        let open: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
        assert!(open.iter().any(|path| path == disk.path()), "{open:?}");
        assert!(!open.contains(&secret), "the file that the header names is open");
        assert_header_is_data(&Report::parse(&vmm.console().text()), &header);
    }
}

#[track_caller]
fn assert_header_is_data(report: &Report, header: &[u8]) {
    good(report);
    assert_eq!(number(report, "capacity"), MIB / SECTOR);
    let sum = pattern::checksum(pattern::CHECKSUM_START, header);
    assert_eq!(number(report, "checksum"), sum);
}

#[test]
fn a_loop_device_is_a_drive() {
    mayfly_tests::binary::require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 4 * MIB).unwrap();
    let out = std::process::Command::new("losetup").args(["--find", "--show"]).arg(disk.path()).output().unwrap();
    assert!(out.status.success(), "losetup: {}", String::from_utf8_lossy(&out.stderr));
    let device = String::from_utf8(out.stdout).unwrap();
    let outcome = std::panic::catch_unwind(|| {
        for engine in ENGINES {
            let what = block(BlockOp::Write, 16, 512, 11);
            let (_, report) = operate(Path::new(device.trim()), engine, what, json!({"cache_type": "Writeback"}));
            good(&report);
            assert_eq!(number(&report, "capacity"), 4 * MIB / SECTOR);
            let (_, report) = operate(Path::new(device.trim()), engine, block(BlockOp::Verify, 16, 512, 11), json!({}));
            good(&report);
        }
    });
    assert!(std::process::Command::new("losetup").args(["-d", device.trim()]).status().unwrap().success());
    outcome.unwrap();
}
