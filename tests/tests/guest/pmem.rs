//! Persistent memory: the guest's stores are in the file, read-only files stay as they are, and a file that misbehaves ends the machine in
//! good order at worst.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest::hostile::{CASES, Needs};
use guest::{End, Job, Mode, Pmem, PmemOp, Report, pattern};
use mayfly_tests::{Disk, PATIENCE, Vmm, on_pci};
use serde_json::{Value, json};

use super::hostile::{acceptable, suffer};
use super::pass_bar::LINES_MAX;
use super::{configured, number, run, text};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Where the first device's memory is.
const START: u64 = 256 << 30;

#[track_caller]
fn put(vmm: &Vmm, id: &str, path: &Path, more: Value) {
    let mut body = json!({"id": id, "path_on_host": path});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    vmm.put(&format!("/pmem/{id}"), &body).expect_204();
}

/// Runs one operation on a device and returns the report.
#[track_caller]
fn operate(path: &Path, what: Pmem, more: Value) -> (Vmm, Report) {
    let vmm = configured(&Job::new(Mode::Pmem(what)));
    put(&vmm, "p", path, more);
    let report = run(&vmm);
    (vmm, report)
}

#[track_caller]
fn good(report: &Report) {
    assert_eq!((number(report, "errors"), number(report, "mismatches")), (0, 0), "{report:?}");
}

fn expected(seed: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    for (sector, chunk) in (offset / SECTOR..).zip(bytes.chunks_mut(SECTOR as usize)) {
        pattern::fill(seed, sector, chunk);
    }
    bytes
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

#[test]
fn what_the_guest_stores_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    // Neither pages nor the 2 MiB that guests want.
    let len = 3 * MIB + 100;
    let disk = Disk::sparse(dir.path(), "file", len).unwrap();
    let what = Pmem { offset: 4096, len: MIB, seed: 7, flushes: 3, ..Pmem::new(PmemOp::Write) };
    let (_, report) = operate(disk.path(), what, json!({}));
    good(&report);
    assert_eq!((number(&report, "start"), number(&report, "len"), number(&report, "flushes")), (START, 4 * MIB, 3));
    assert!(disk.read(4096, MIB as usize).unwrap() == expected(7, 4096, MIB));
    assert!(is_zero(&disk.read(0, 4096).unwrap()));
    assert!(is_zero(&disk.read(4096 + MIB, (len - 4096 - MIB) as usize).unwrap()));

    // Behind the file there is memory, but no file: neither does it grow, nor is anybody hurt.
    let what = Pmem { offset: 3 * MIB, len: MIB, seed: 8, flushes: 1, ..Pmem::new(PmemOp::Write) };
    good(&operate(disk.path(), what, json!({})).1);
    assert_eq!(std::fs::metadata(disk.path()).unwrap().len(), len);
    assert!(disk.read(3 * MIB, 100).unwrap() == expected(8, 3 * MIB, 100));
}

#[test]
fn the_guest_reads_what_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "file", 2 * MIB).unwrap();
    disk.write(0, &expected(3, 0, 2 * MIB)).unwrap();
    let what = || Pmem { len: 2 * MIB, seed: 3, ..Pmem::new(PmemOp::Read) };
    for more in [json!({}), json!({"read_only": true})] {
        good(&operate(disk.path(), what(), more).1);
    }
    // The same with one byte off must be noticed, or this test proves nothing.
    let byte = disk.read(MIB, 1).unwrap();
    disk.write(MIB, &[!byte[0]]).unwrap();
    let (_, report) = operate(disk.path(), what(), json!({}));
    assert_eq!(number(&report, "mismatches"), 1, "{report:?}");
}

/// CVE-2026-24834: what may only be read is read-only by the memory slot, not by the driver's good will.
#[test]
fn stores_to_a_read_only_file_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::patterned(dir.path(), "file", 2 * MIB, 5).unwrap();
    let before = disk.read(0, 2 * MIB as usize).unwrap();
    let what = Pmem { len: MIB, flushes: 2, ..Pmem::new(PmemOp::Poke) };
    let (vmm, report) = operate(disk.path(), what, json!({"read_only": true}));
    good(&report);
    assert!(disk.read(0, 2 * MIB as usize).unwrap() == before);
    let lines = vmm.log().matches("was ignored: it is read-only").count();
    assert!((1..=LINES_MAX).contains(&lines), "{lines} lines");
    // A file nobody may write is good enough.
    let mut rights = std::fs::metadata(disk.path()).unwrap().permissions();
    rights.set_readonly(true);
    std::fs::set_permissions(disk.path(), rights).unwrap();
    good(&operate(disk.path(), Pmem { len: MIB, ..Pmem::new(PmemOp::Flush) }, json!({"read_only": true})).1);
}

/// With DAX, a guest's file cache is this memory, and a drive's data goes straight in and out.
#[test]
fn a_drive_reads_into_it_and_writes_from_it() {
    let dir = tempfile::tempdir().unwrap();
    for (op, read_only) in
        [(PmemOp::DmaIn, false), (PmemOp::DmaOut, false), (PmemOp::DmaOut, true), (PmemOp::DmaIn, true)]
    {
        for engine in ["Sync", "Async"] {
            let name = format!("{op:?}-{read_only}-{engine}");
            let file = Disk::patterned(dir.path(), &format!("{name}-pmem"), 2 * MIB, 5).unwrap();
            let drive = Disk::patterned(dir.path(), &format!("{name}-drive"), MIB, 6).unwrap();
            let (memory, blocks) = (file.read(0, 2 * MIB as usize).unwrap(), drive.read(0, MIB as usize).unwrap());
            let vmm = configured(&Job::new(Mode::Pmem(Pmem { offset: 8192, len: 4096, ..Pmem::new(op) })));
            vmm.drive("d", drive.path(), engine);
            put(&vmm, "p", file.path(), json!({"read_only": read_only}));
            let report = run(&vmm);
            let (page, sectors) = (file.read(8192, 4096).unwrap(), drive.read(0, 4096).unwrap());
            if op == PmemOp::DmaIn && read_only {
                assert_eq!(number(&report, "errors"), 1, "{name}: {report:?}");
                assert!(file.read(0, 2 * MIB as usize).unwrap() == memory, "{name}");
            } else {
                good(&report);
                assert!(page == sectors, "{name}");
                assert!(page == if op == PmemOp::DmaIn { &blocks[..4096] } else { &memory[8192..12288] }, "{name}");
            }
        }
    }
}

/// Devices follow one another in the order of the requests, and that is how the guest numbers them.
#[test]
fn each_device_has_its_place_and_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let [small, root] = [("small", MIB), ("root", 5 * MIB)].map(|(n, len)| Disk::sparse(dir.path(), n, len).unwrap());
    let job = |index: u64| Job::new(Mode::Pmem(Pmem::new(PmemOp::Read))).with("pmem", index);
    for (index, start, len) in [(0, START, 2 * MIB), (1, START + 2 * MIB, 6 * MIB)] {
        let vmm = configured(&job(index));
        put(&vmm, "small", small.path(), json!({}));
        put(&vmm, "root", root.path(), json!({"root_device": true}));
        let report = run(&vmm);
        assert_eq!((number(&report, "start"), number(&report, "len")), (start, len), "{report:?}");
    }
    for (read_only, how) in [(false, "rw"), (true, "ro")] {
        let job = Job::new(Mode::Probe);
        let vmm = configured(&job);
        put(&vmm, "small", small.path(), json!({}));
        put(&vmm, "root", root.path(), json!({"root_device": true, "read_only": read_only}));
        let windows = "virtio_mmio.device=4K@0xc0001000:5 root=/dev/pmem1";
        let line = match on_pci() {
            false => format!("{job} pci=off {windows} {how} virtio_mmio.device=4K@0xc0002000:6"),
            true => format!("{job} root=/dev/pmem1 {how}"),
        };
        assert_eq!(number(&run(&vmm), "command_line_len"), line.len() as u64);
    }
}

/// Files are opened at the start, and a start that fails can be tried again.
#[test]
fn what_cannot_be_mapped_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let empty = Disk::sparse(dir.path(), "empty", 0).unwrap();
    let huge = Disk::sparse(dir.path(), "huge", 300 << 30).unwrap();
    let vmm = configured(&Job::new(Mode::Pmem(Pmem::new(PmemOp::Flush))));
    let cases = [
        (empty.path().to_owned(), "Error backing file size is 0"),
        (dir.path().join("none"), "No such file or directory"),
        (dir.path().to_owned(), "Is a directory"),
        ("/dev/zero".into(), "a character device"),
        (huge.path().to_owned(), "MiB of guest addresses"),
    ];
    for (path, why) in cases {
        put(&vmm, "p", &path, json!({}));
        let refused = vmm.put("/actions", &json!({"action_type": "InstanceStart"}));
        refused.expect_fault(why);
        refused.expect_fault("Start microvm error: ");
    }
    let good_one = Disk::sparse(dir.path(), "good", MIB).unwrap();
    put(&vmm, "p", good_one.path(), json!({}));
    good(&run(&vmm));
}

/// F6: the guest finds its memory gone. That is its end, but an orderly one that says why.
#[test]
fn a_file_that_shrinks_ends_the_machine_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::patterned(dir.path(), "file", 2 * MIB, 5).unwrap();
    let what = Pmem { len: 2 * MIB, ..Pmem::new(PmemOp::Read) };
    let vmm = configured(&Job::new(Mode::Pmem(what)).with("rounds", u64::MAX));
    put(&vmm, "p", disk.path(), json!({}));
    vmm.instance_start();
    vmm.wait_for_line("start=", PATIENCE);
    File::options().write(true).open(disk.path()).unwrap().set_len(4096).unwrap();
    ends_for_want_of_memory(&vmm);
    assert!(vmm.log().contains("pmem p: ") && vmm.log().contains("became shorter"), "{}", vmm.log());
}

/// R2: no room on the host for what the guest stores.
#[test]
fn a_full_disk_ends_the_machine_with_a_reason() {
    mayfly_tests::binary::require_root();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let command = |args: &[&str]| {
        assert!(Command::new(args[0]).args(&args[1..]).status().unwrap().success(), "{args:?}");
    };
    command(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at]);
    let disk = Disk::sparse(dir.path(), "file", 8 * MIB).unwrap();
    let vmm = configured(&Job::new(Mode::Pmem(Pmem { len: 8 * MIB, ..Pmem::new(PmemOp::Write) })));
    put(&vmm, "p", disk.path(), json!({}));
    vmm.instance_start();
    ends_for_want_of_memory(&vmm);
    drop(vmm);
    command(&["umount", at]);
}

#[track_caller]
fn ends_for_want_of_memory(vmm: &Vmm) {
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains("the guest touched memory that the host cannot provide"), "{}", vmm.log());
    assert!(!vmm.socket().exists(), "the socket is removed");
}

#[test]
fn flushes_keep_to_the_rate_limit_until_it_is_lifted() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "file", MIB).unwrap();
    let limit = |size, refill| json!({"ops": {"size": size, "refill_time": refill}});
    let took = |flushes, limiter: &Value| {
        let vmm = configured(&Job::new(Mode::Pmem(Pmem { flushes, ..Pmem::new(PmemOp::Flush) })));
        put(&vmm, "p", disk.path(), json!({"rate_limiter": limiter}));
        let start = Instant::now();
        let report = run(&vmm);
        good(&report);
        assert_eq!(number(&report, "flushes"), flushes);
        start.elapsed()
    };
    // The bucket's five, then 15 more at 100 ms each.
    let slow = took(20, &limit(5, 500));
    assert!(slow >= Duration::from_millis(1400), "{slow:?}");

    // Two flushes a minute, until a request says otherwise.
    let vmm = configured(&Job::new(Mode::Pmem(Pmem { flushes: 50, ..Pmem::new(PmemOp::Flush) })));
    put(&vmm, "p", disk.path(), json!({"rate_limiter": limit(2, 60_000)}));
    vmm.instance_start();
    vmm.wait_for_line("start=", PATIENCE);
    vmm.patch("/pmem/p", &json!({"id": "p", "rate_limiter": limit(0, 0)})).expect_204();
    let report = super::finish(&vmm);
    good(&report);
    assert_eq!(number(&report, "flushes"), 50);
}

#[test]
fn g24_persistent_memory_abused() {
    let dir = tempfile::tempdir().unwrap();
    let drive = Disk::sparse(dir.path(), "drive", MIB).unwrap();
    let file = Disk::sparse(dir.path(), "file", MIB).unwrap();
    let fixed = Disk::patterned(dir.path(), "fixed", MIB, 3).unwrap();
    let before = fixed.read(0, MIB as usize).unwrap();
    let vmm = configured(&Job::new(Mode::Hostile("g24-".to_owned())).end(End::Spin));
    vmm.drive("d", drive.path(), "Sync");
    put(&vmm, "p", file.path(), json!({}));
    put(&vmm, "fixed", fixed.path(), json!({"read_only": true}));
    let report = suffer(&vmm, LINES_MAX);
    let cases = CASES.iter().filter(|case| case.needs == Needs::Pmem);
    assert!(cases.clone().count() > 5);
    cases.for_each(|case| acceptable(&report, case));
    assert!(fixed.read(0, MIB as usize).unwrap() == before, "the read-only file changed");
    assert_eq!(text(&report, "recovered"), "yes");
}

#[test]
fn persistent_memory_survives_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "pmem", 4 * MIB).unwrap();
    operate(disk.path(), Pmem { len: 2 * MIB, seed: 9, ..Pmem::new(PmemOp::Write) }, json!({}));
    let read = Pmem { len: 2 * MIB, seed: 9, flushes: 3, ..Pmem::new(PmemOp::Read) };
    for read_only in [false, true] {
        let vmm = configured(&Job::new(Mode::Pmem(read.clone())).with("rounds", 300));
        put(&vmm, "p", disk.path(), json!({"read_only": read_only}));
        vmm.instance_start();
        vmm.wait_for_line("start=", PATIENCE);
        let vmm = super::snapshots::moved(super::snapshots::moved(vmm));
        super::snapshots::finish(&vmm);
        let text = vmm.console().text();
        assert!(text.contains("errors=0") && text.contains("mismatches=0"), "{text}");
    }
}
