//! A guest that means harm: every case of the catalogue that one vCPU can do, and what it costs the monitor.
//!
//! One machine per row of the catalogue and engine, so that the pass bar says whose fault it is; then one machine for all of them.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guest::hostile::{CASES, Case, Needs};
use guest::{End, Job, Mode, Report};
use mayfly_tests::{Disk, PATIENCE, Tap, Vmm, metrics, tap};
use serde_json::json;

use super::hotplug::pci;
use super::pass_bar::{LINES_MAX, PassBar};
use super::{configured, configured_with, flush_metrics, measured};

/// The whole run has many cases that wait half a second for an answer that must not come.
const LONG: Duration = Duration::from_secs(120);
const DISK_LEN: u64 = 1 << 20;
const MAC: &str = "06:00:00:00:00:01";

/// Starts the machine, waits for the end of the mischief, applies the pass bar and returns the report.
#[track_caller]
pub(crate) fn suffer(vmm: &Vmm, lines_max: usize) -> Report {
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let bar = PassBar::before(vmm);
    vmm.wait_for_line(guest::DONE, LONG);
    bar.check(vmm, lines_max);
    Report::parse(&vmm.console().text())
}

/// A named counter has seen it.
#[track_caller]
fn counted(vmm: &Vmm, file: &Path, (group, field): (&str, &str)) {
    flush_metrics(vmm);
    assert!(metrics::total(file, group, field) > 0, "{group}.{field} has seen nothing");
}

#[track_caller]
pub(crate) fn acceptable(report: &Report, case: &Case) {
    let line = report.case(case.name).unwrap_or_else(|| panic!("{} did not run: {report:?}", case.name));
    let outcome = line.get("outcome").unwrap_or("nothing");
    assert!(case.accepts(outcome), "{}: {outcome}, acceptable: {:?}\n{}", case.name, case.accept, line.text());
    assert_ne!(line.get("recovered"), Some("no"), "{}", line.text());
}

/// One row of the catalogue on a machine with one writable drive, with either engine. What it does is counted there.
#[track_caller]
fn row(family: &str, counter: (&str, &str)) {
    row_on(0, family, counter);
    if counter.0 == "block" {
        // And done to the second queue of a drive that has two.
        row_on(1, family, counter);
    }
}

#[track_caller]
fn row_on(queue: u32, family: &str, counter: (&str, &str)) {
    let dir = tempfile::tempdir().unwrap();
    let cases = |c: &&Case| c.name.starts_with(family) && matches!(c.needs, Needs::Drive | Needs::Machine);
    for engine in ["Sync", "Async"] {
        let disk = Disk::sparse(dir.path(), engine, DISK_LEN).unwrap();
        let job = Job::new(Mode::Hostile(family.to_owned())).end(End::Spin).with("kicks", 100_000).with("queue", queue);
        let vmm = configured(&job);
        let drive = json!({
            "drive_id": "d", "path_on_host": disk.path(), "is_root_device": false, "io_engine": engine,
            "num_queues": queue + 1,
        });
        vmm.put("/drives/d", &drive).expect_204();
        let file = measured(&vmm);
        let report = suffer(&vmm, LINES_MAX);
        counted(&vmm, &file, counter);
        let mut seen = 0;
        for case in CASES.iter().filter(cases) {
            acceptable(&report, case);
            seen += 1;
        }
        assert!(seen > 1, "{family} has {seen} cases");
        assert_eq!(std::fs::metadata(disk.path()).unwrap().len(), DISK_LEN, "{engine}: the file grew or shrank");
        let last = disk.read(DISK_LEN - 512, 512).unwrap();
        assert!(!last.contains(&0x66), "{engine}: a write that passes the end must write nothing");
    }
}

#[test]
fn g1_queue_sizes() {
    row("g1-", ("block", "activate_fails"));
}

#[test]
fn g2_queue_registers_rewritten_while_live() {
    row("g2-", ("block", "cfg_fails"));
}

#[test]
fn g3_rings_where_they_cannot_be() {
    row("g3-", ("block", "activate_fails"));
}

#[test]
fn g5_status_and_features_out_of_order() {
    row("g5-", ("block", "cfg_fails"));
}

#[test]
fn g6_descriptor_loops() {
    row("g6-", ("block", "invalid_reqs_count"));
}

#[test]
fn g7_indirect_tables() {
    row("g7-", ("block", "invalid_reqs_count"));
}

#[test]
fn g8_rings_that_lie() {
    row("g8-", ("block", "event_fails"));
}

#[test]
fn g9_block_requests_that_are_none() {
    row("g9-", ("block", "invalid_reqs_count"));
}

#[test]
fn g19_doorbells_and_undefined_registers() {
    row("g19-", ("block", "cfg_fails"));
}

#[test]
fn g23_console_floods_and_registers() {
    row("g23-", ("uart", "write_count"));
}

#[test]
fn g27_accesses_that_no_driver_makes() {
    row("g27-", ("block", "cfg_fails"));
}

/// A machine with a bus and two drives on it, whatever the others are.
fn on_a_bus(dir: &Path, case: &str, engine: &str) -> Vmm {
    let vmm = configured_with(pci(), guest::ELF, &Job::new(Mode::Hostile(case.to_owned())).end(End::Spin));
    for name in ["d", "e"] {
        let disk = Disk::sparse(dir, &format!("{case}{engine}{name}"), DISK_LEN).unwrap();
        vmm.drive(name, disk.path(), engine);
    }
    vmm
}

#[test]
fn g28_functions_of_a_bus() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Sync", "Async"] {
        let vmm = on_a_bus(dir.path(), "g28-", engine);
        let file = measured(&vmm);
        let report = suffer(&vmm, LINES_MAX);
        counted(&vmm, &file, ("block", "cfg_fails"));
        let cases = CASES.iter().filter(|case| case.needs == Needs::Bus);
        assert_eq!(cases.map(|case| acceptable(&report, case)).count(), 22);
    }
}

#[test]
fn g28_two_processors_at_one_function() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Sync", "Async"] {
        let vmm = on_a_bus(dir.path(), "g28-bar-race", engine);
        vmm.machine(2, super::pass_bar::RAM_MIB);
        // Ten lines every five seconds from each place in the code, and the race may take some of them on a busy host.
        let report = suffer(&vmm, 3 * LINES_MAX);
        let case = CASES.iter().find(|case| case.needs == Needs::BusRace).unwrap();
        acceptable(&report, case);
        // Both have done something, or this was no race.
        let seen = |key: &str| report.case(case.name).and_then(|line| line.number::<u64>(key));
        assert!(seen("starts") > Some(0) && seen("spoils") > Some(0), "{report:?}");
    }
}

#[test]
fn g29_interrupt_controllers_full_of_nonsense() {
    row("g29-", ("interrupts", "config_updates"));
}

#[test]
fn g13_frames_that_are_none() {
    tap::private_network();
    let tap = Tap::create("mfframes").unwrap();
    tap.up().unwrap();
    let socket = tap.packets().unwrap();
    let vmm = configured(&Job::new(Mode::Hostile("g13-".to_owned())).end(End::Spin));
    vmm.network("eth0", tap.name(), MAC);
    let file = measured(&vmm);
    let report = suffer(&vmm, LINES_MAX);
    counted(&vmm, &file, ("net", "tx_malformed_frames"));
    for case in CASES.iter().filter(|case| matches!(case.needs, Needs::Interface)) {
        acceptable(&report, case);
    }
    let mut frames = 0;
    while let Some(frame) = socket.receive(Duration::ZERO).unwrap() {
        assert!((14..=65_535 + 14).contains(&frame.len()), "the tap saw a frame of {} bytes", frame.len());
        frames += 1;
    }
    assert!(frames > 0, "the good frames between the bad ones arrive");
}

#[test]
fn g14_more_random_bytes_than_there_is_memory() {
    let job = Job::new(Mode::Hostile("g14-".to_owned())).end(End::Spin).with("requests", 1_000_000);
    let vmm = configured(&job);
    vmm.put("/entropy", &json!({})).expect_204();
    let file = measured(&vmm);
    let report = suffer(&vmm, LINES_MAX);
    counted(&vmm, &file, ("entropy", "entropy_event_fails"));
    let cases = CASES.iter().filter(|case| matches!(case.needs, Needs::Entropy));
    assert_eq!(cases.map(|case| acceptable(&report, case)).count(), 7);
}

/// Packets that lie, more connections than there are seats, ports nobody should make a path of, answers that nobody takes.
#[test]
fn g15_to_g18_sockets_of_a_guest_that_lies() {
    for (family, counter) in
        [("g15-", "conns_killed"), ("g16-", "conns_added"), ("g17-", "tx_packets_count"), ("g18-", "tx_packets_count")]
    {
        let vmm = configured(&Job::new(Mode::Hostile(family.to_owned())).end(End::Spin));
        let path = vmm.dir().join("v.sock");
        vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": path})).expect_204();
        let listener = UnixListener::bind(vmm.dir().join("v.sock_60")).unwrap();
        let file = measured(&vmm);
        let files = || std::fs::read_dir(vmm.dir()).unwrap().count();
        let before = files();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Accepts everybody and reads nothing.
            scope.spawn(|| {
                let mut streams = Vec::new();
                while let (Ok((stream, _)), false) = (listener.accept(), over.load(Ordering::SeqCst)) {
                    streams.push(stream);
                }
            });
            let report = suffer(&vmm, LINES_MAX);
            counted(&vmm, &file, ("vsock", counter));
            over.store(true, Ordering::SeqCst);
            drop(UnixStream::connect(vmm.dir().join("v.sock_60")));
            for case in CASES.iter().filter(|case| case.name.starts_with(family)) {
                acceptable(&report, case);
            }
            let open = vmm.descriptors();
            assert!(open < 100, "{open} descriptors are left");
            assert_eq!(files(), before, "{family}: files were made or removed");
        });
    }
}

/// Segments, requests and ARP that no client of the metadata service would send.
#[test]
fn g25_a_client_of_the_metadata_service_that_means_harm() {
    tap::private_network();
    let tap = Tap::create("mfharm").unwrap();
    tap.up().unwrap();
    let vmm = configured(&Job::new(Mode::Hostile("g25-".to_owned())).end(End::Spin).with("service", 1));
    vmm.network("eth0", tap.name(), MAC);
    vmm.put("/mmds/config", &json!({"network_interfaces": ["eth0"], "version": "V2"})).expect_204();
    vmm.put("/mmds", &json!({"secret": "x".repeat(10_000)})).expect_204();
    let file = measured(&vmm);
    let report = suffer(&vmm, LINES_MAX);
    counted(&vmm, &file, ("mmds", "rx_accepted_err"));
    let cases = CASES.iter().filter(|case| case.name.starts_with("g25-"));
    assert_eq!(cases.map(|case| acceptable(&report, case)).count(), 24);
}

/// A balloon with everything it can have.
fn balloon() -> serde_json::Value {
    json!({
        "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true,
        "free_page_reporting": true,
    })
}

/// How long the API's answers take while the guest is at it. A sixth of them may have met another test's burst of work.
fn answers_until_done(vmm: &Vmm) {
    let mut took = Vec::new();
    let deadline = Instant::now() + LONG;
    while !vmm.console().text().contains(guest::DONE) {
        assert!(Instant::now() < deadline, "{}", vmm.said());
        let asked = Instant::now();
        assert_eq!(vmm.get("/").status, 200, "{}", vmm.said());
        took.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    took.sort_unstable();
    assert!(took.len() > 20, "{} answers", took.len());
    let most = took[took.len() * 5 / 6];
    assert!(most < Duration::from_millis(50), "GET / takes {most:?}, at most {:?}", took.last());
}

#[test]
fn g20_balloons_that_make_no_sense() {
    let vmm = configured(&Job::new(Mode::Hostile("g20-".to_owned())).end(End::Spin));
    vmm.put("/balloon", &balloon()).expect_204();
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let bar = PassBar::before(&vmm);
    answers_until_done(&vmm);
    bar.check(&vmm, LINES_MAX);
    let report = Report::parse(&vmm.console().text());
    let cases = CASES.iter().filter(|case| case.needs == Needs::Balloon);
    assert_eq!(cases.map(|case| acceptable(&report, case)).count(), 19);
}

/// G20: a guest that gives its page tables away ends, or goes on with what the processor has of them. The monitor does not mind.
#[test]
fn g20_page_tables_given_away() {
    for case in CASES.iter().filter(|case| case.needs == Needs::BalloonEnd) {
        let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())));
        vmm.put("/balloon", &balloon()).expect_204();
        vmm.instance_start();
        let code = vmm.wait_exit(PATIENCE);
        assert!(code == 0 || code == 1, "{}: {code}\n{}", case.name, vmm.said());
        assert!(vmm.log().contains("The microVM ended: "), "{}: {}", case.name, vmm.log());
        assert!(vmm.console().text().contains("outcome=ending"), "{}", vmm.said());
    }
}

/// G21: one processor gives pages away, the other one writes to them.
#[test]
fn g21_pages_that_are_in_use() {
    for case in CASES.iter().filter(|case| case.needs == Needs::BalloonRace) {
        let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())).end(End::Spin));
        vmm.machine(2, super::pass_bar::RAM_MIB);
        vmm.put("/balloon", &balloon()).expect_204();
        vmm.instance_start();
        vmm.wait_for_line(guest::READY, PATIENCE);
        let bar = PassBar::before(&vmm);
        if case.name == "g21-hint" {
            vmm.wait_for_line("waiting=for-a-run", PATIENCE);
            vmm.patch("/balloon/hinting/start", &json!({"acknowledge_on_stop": false})).expect_204();
        }
        vmm.wait_for_line(guest::DONE, LONG);
        bar.check(&vmm, LINES_MAX);
        let report = Report::parse(&vmm.console().text());
        acceptable(&report, case);
        // Both have happened, or this was no race.
        let seen = |key: &str| report.case(case.name).and_then(|line| line.number::<u64>(key));
        assert!(seen("zero") > Some(0) && seen("old") > Some(0), "{report:?}");
    }
}

/// G11: reads in flight while their device is reset, or their targets are given away.
#[test]
fn g11_memory_that_reads_in_flight_go_to() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Async", "Sync"] {
        let disk = Disk::sparse(dir.path(), engine, DISK_LEN).unwrap();
        disk.write(0, &[0x11; DISK_LEN as usize]).unwrap();
        let vmm = configured(&Job::new(Mode::Hostile("g11-".to_owned())).end(End::Spin));
        vmm.drive("d", disk.path(), engine);
        vmm.put("/balloon", &balloon()).expect_204();
        vmm.put("/hotplug/memory", &json!({"total_size_mib": 256})).expect_204();
        vmm.instance_start();
        vmm.wait_for_line(guest::READY, PATIENCE);
        let bar = PassBar::before(&vmm);
        vmm.patch("/hotplug/memory", &json!({"requested_size_mib": 64})).expect_204();
        vmm.wait_for_line(guest::DONE, LONG);
        bar.check(&vmm, LINES_MAX);
        let report = Report::parse(&vmm.console().text());
        for case in CASES.iter().filter(|case| case.needs == Needs::InFlight) {
            acceptable(&report, case);
            assert_eq!(report.case(case.name).and_then(|line| line.number::<u64>("in_flight")), Some(256));
        }
        assert!(
            disk.read(0, DISK_LEN as usize).unwrap().iter().all(|byte| *byte == 0x11),
            "{engine}: the file changed"
        );
    }
}

/// G4 and G26: two processors, one of which changes under the device's eyes what the other shows it.
#[test]
fn g4_g26_races() {
    tap::private_network();
    let tap = Tap::create("mfrace").unwrap();
    tap.up().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Sync", "Async"] {
        for case in CASES.iter().filter(|case| matches!(case.needs, Needs::Race | Needs::InterfaceRace)) {
            let disk = Disk::patterned(dir.path(), &format!("{}-{engine}", case.name), DISK_LEN, 5).unwrap();
            let before = disk.read(0, DISK_LEN as usize).unwrap();
            let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())).end(End::Spin));
            vmm.machine(2, super::pass_bar::RAM_MIB);
            vmm.drive("d", disk.path(), engine);
            vmm.network("eth0", tap.name(), MAC);
            acceptable(&suffer(&vmm, LINES_MAX), case);
            assert!(disk.read(0, DISK_LEN as usize).unwrap() == before, "{}: nothing was written", case.name);
        }
    }
}

/// All cases that leave a machine behind, one after the other on one machine with everything.
#[test]
fn all_of_it_on_one_machine() {
    tap::private_network();
    let tap = Tap::create("mfhostile").unwrap();
    tap.up().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", DISK_LEN).unwrap();
    let untouched = Disk::patterned(dir.path(), "read-only", DISK_LEN, 3).unwrap();
    let before = untouched.read(0, DISK_LEN as usize).unwrap();

    let vmm = configured(&Job::new(Mode::Hostile("all".to_owned())).end(End::Spin));
    vmm.drive("d", disk.path(), "Sync");
    let body =
        json!({"drive_id": "ro", "path_on_host": untouched.path(), "is_root_device": false, "is_read_only": true});
    vmm.put("/drives/ro", &body).expect_204();
    vmm.network("eth0", tap.name(), MAC);
    let cases = || CASES.iter().filter(|case| matches!(case.needs, Needs::Machine | Needs::Drive | Needs::Interface));
    // Two lines for each different mischief, at most.
    let report = suffer(&vmm, 2 * cases().count());
    cases().for_each(|case| acceptable(&report, case));
    assert!(cases().count() > 80, "{} cases", cases().count());
    assert!(untouched.read(0, DISK_LEN as usize).unwrap() == before, "the other drive's file changed");
}

/// G9: a read-only drive whose guest never acknowledged that.
#[test]
fn g9_a_read_only_drive_is_read_only_whatever_was_negotiated() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES.iter().filter(|case| matches!(case.needs, Needs::ReadOnlyDrive)) {
        for engine in ["Sync", "Async"] {
            let name = format!("{}-{engine}", case.name);
            let disk = Disk::patterned(dir.path(), &name, DISK_LEN, 3).unwrap();
            let before = disk.read(0, DISK_LEN as usize).unwrap();
            let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())).end(End::Spin));
            let body = json!({
                "drive_id": "ro", "path_on_host": disk.path(), "is_root_device": false,
                "is_read_only": true, "io_engine": engine,
            });
            vmm.put("/drives/ro", &body).expect_204();
            acceptable(&suffer(&vmm, LINES_MAX), case);
            assert!(disk.read(0, DISK_LEN as usize).unwrap() == before, "{name}: the file changed");
        }
    }
}

/// G27: what ends a machine ends the process, in good order and with a reason.
#[test]
fn g27_cases_that_end_the_machine_end_it_with_a_reason() {
    for case in CASES.iter().filter(|case| matches!(case.needs, Needs::End)) {
        let vmm = configured(&Job::new(Mode::Hostile(case.name.to_owned())));
        vmm.instance_start();
        let code = vmm.wait_exit(PATIENCE);
        assert!(code == 0 || code == 1, "{}: {code}\n{}", case.name, vmm.said());
        assert!(vmm.log().contains("The microVM ended: "), "{}: {}", case.name, vmm.log());
        assert!(vmm.console().text().contains("outcome=ending"), "{}", vmm.said());
        assert!(!vmm.socket().exists(), "{}: the socket is removed", case.name);
    }
}
