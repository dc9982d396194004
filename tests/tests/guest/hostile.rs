//! A guest that means harm: every case of the catalogue that one vCPU can do, and what it costs the monitor.

use std::time::{Duration, Instant};

use guest::hostile::{CASES, Needs};
use guest::{Job, Mode};
use mayfly_tests::{Disk, PATIENCE, Tap, Vmm, tap};
use serde_json::json;

use super::configured;

/// The whole run has many cases that wait half a second for an answer that must not come.
const LONG: Duration = Duration::from_secs(120);
const DISK_LEN: u64 = 1 << 20;

/// The pass bar of the catalogue: alive, answering, small, quiet, and not spinning.
///
/// The catalogue allows 50 log lines for one stimulus; `stimuli` of them, each a different mischief, are allowed two lines each at least.
#[track_caller]
fn pass_bar(vmm: &Vmm, rss_before_kib: u64, stimuli: usize) {
    assert!(vmm.is_running(), "{}", vmm.said());
    let quickest = (0..5)
        .map(|_| {
            let asked = Instant::now();
            vmm.get("/").expect_200();
            asked.elapsed()
        })
        .min();
    assert!(quickest < Some(Duration::from_millis(100)), "GET / takes {quickest:?}");
    let grown = rss_kib(vmm).saturating_sub(rss_before_kib);
    assert!(grown < 1024, "{grown} KiB more than before");
    // The API's own lines do not count.
    let lines = vmm.log().lines().filter(|line| !line.contains(":api]")).count();
    assert!(lines < 50.max(2 * stimuli), "{lines} lines\n{}", vmm.log());
    let ticks = vmm_thread_ticks(vmm);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = vmm_thread_ticks(vmm);
        std::thread::sleep(Duration::from_millis(100));
        if vmm_thread_ticks(vmm) == before {
            break;
        }
        assert!(Instant::now() < deadline, "the VMM thread keeps running: {ticks} ticks and more");
    }
}

/// Resident memory that is not guest RAM, in KiB.
fn rss_kib(vmm: &Vmm) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut size, mut sum) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next(), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (key, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size != 64 << 10 => sum += kib,
            _ => {}
        }
    }
    sum
}

/// CPU time of the VMM thread in clock ticks.
fn vmm_thread_ticks(vmm: &Vmm) -> u64 {
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim() == "vmm" {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap();
            let after_name = stat.rsplit_once(')').unwrap().1;
            let fields: Vec<&str> = after_name.split_whitespace().collect();
            return fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    panic!("no thread `vmm`");
}

/// G1 to G3, G5 to G9, G13, G19, G23, G27: all cases that leave a machine behind, one after the other on one machine.
#[test]
fn every_case_has_an_acceptable_outcome_and_costs_little() {
    tap::private_network();
    let tap = Tap::create("mfhostile").unwrap();
    tap.up().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", DISK_LEN).unwrap();
    let untouched = Disk::patterned(dir.path(), "read-only", DISK_LEN, 3).unwrap();
    let before = untouched.read(0, DISK_LEN as usize).unwrap();

    let vmm = configured(&Job::new(Mode::Hostile("all".to_owned())).end(guest::End::Spin).with("read_only_drive", 1));
    vmm.drive("d", disk.path(), "Sync");
    let body =
        json!({"drive_id": "ro", "path_on_host": untouched.path(), "is_root_device": false, "is_read_only": true});
    vmm.put("/drives/ro", &body).expect_204();
    vmm.network("eth0", tap.name(), "06:00:00:00:00:01");
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let rss = rss_kib(&vmm);
    vmm.wait_for_line(guest::DONE, LONG);
    let report = guest::Report::parse(&vmm.console().text());

    let mut seen = 0;
    for case in CASES.iter().filter(|case| !matches!(case.needs, Needs::End | Needs::ReadOnlyDrive)) {
        let line = report.case(case.name).unwrap_or_else(|| panic!("{} did not run\n{}", case.name, vmm.said()));
        let outcome = line.get("outcome").unwrap_or("nothing");
        assert!(case.accepts(outcome), "{}: {outcome}, acceptable: {:?}\n{}", case.name, case.accept, line.text());
        assert_ne!(line.get("recovered"), Some("no"), "{}", line.text());
        seen += 1;
    }
    assert!(seen > 80, "{seen} cases");
    pass_bar(&vmm, rss, seen);
    assert!(untouched.read(0, DISK_LEN as usize).unwrap() == before, "the read-only file changed");
    let last = disk.read(DISK_LEN - 512, 512).unwrap();
    assert!(!last.contains(&0x66), "a write that passes the end must write nothing");
}

/// G9: a read-only drive whose guest never acknowledged that.
#[test]
fn a_read_only_drive_is_read_only_whatever_was_negotiated() {
    let dir = tempfile::tempdir().unwrap();
    for name in CASES.iter().filter(|case| matches!(case.needs, Needs::ReadOnlyDrive)).map(|case| case.name) {
        let disk = Disk::patterned(dir.path(), name, DISK_LEN, 3).unwrap();
        let before = disk.read(0, DISK_LEN as usize).unwrap();
        let vmm = configured(&Job::new(Mode::Hostile(name.to_owned())));
        let body =
            json!({"drive_id": "ro", "path_on_host": disk.path(), "is_root_device": false, "is_read_only": true});
        vmm.put("/drives/ro", &body).expect_204();
        let report = super::run(&vmm);
        let line = report.case(name).unwrap();
        let case = guest::hostile::case(name).unwrap();
        assert!(case.accepts(line.get("outcome").unwrap_or("nothing")), "{}", line.text());
        assert!(disk.read(0, DISK_LEN as usize).unwrap() == before, "{name}: the file changed");
    }
}

/// The same chains against the io_uring engine.
#[test]
fn the_async_engine_takes_the_same_abuse() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["g5-", "g6-", "g7-", "g8-", "g9-"] {
        let disk = Disk::sparse(dir.path(), family, DISK_LEN).unwrap();
        let vmm = configured(&Job::new(Mode::Hostile(family.to_owned())).end(guest::End::Spin));
        vmm.drive("d", disk.path(), "Async");
        vmm.instance_start();
        vmm.wait_for_line(guest::READY, PATIENCE);
        let rss = rss_kib(&vmm);
        vmm.wait_for_line(guest::DONE, LONG);
        let report = guest::Report::parse(&vmm.console().text());
        for case in CASES.iter().filter(|c| c.name.starts_with(family) && matches!(c.needs, Needs::Drive)) {
            let line = report.case(case.name).unwrap_or_else(|| panic!("{} did not run\n{}", case.name, vmm.said()));
            assert!(case.accepts(line.get("outcome").unwrap_or("nothing")), "{}", line.text());
        }
        pass_bar(&vmm, rss, 1);
    }
}

/// G27: what ends a machine ends the process, in good order and with a reason.
#[test]
fn cases_that_end_the_machine_end_it_with_a_reason() {
    for case in CASES.iter().filter(|case| matches!(case.needs, Needs::End)) {
        let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())));
        vmm.instance_start();
        let code = vmm.wait_exit(PATIENCE);
        assert!(code == 0 || code == 1, "{}: {code}\n{}", case.name, vmm.said());
        assert!(vmm.log().contains("The microVM ended: "), "{}: {}", case.name, vmm.log());
        assert!(vmm.console().text().contains("outcome=ending"), "{}", vmm.said());
    }
}

/// G23: the console's reader sleeps while the guest floods it. The guest goes on, memory stays bounded.
#[test]
fn a_blocked_console_does_not_block_the_guest() {
    let fifo = tempfile::tempdir().unwrap();
    let path = fifo.path().join("console");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Held open, so that the FIFO exists as a pipe, and never read.
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let job = Job::new(Mode::Hostile("g23-".to_owned())).with("bytes", 400_000).end(guest::End::S5);
    let vmm = configured(&job);
    vmm.put("/serial", &json!({"serial_out_path": path})).expect_204();
    vmm.instance_start();
    // The pipe and our buffer hold 128 KiB together; a monitor that waited would never come to the end.
    assert_eq!(vmm.wait_exit(LONG), 0, "{}", vmm.said());
}
