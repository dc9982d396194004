//! Pausing, resuming, swapping a disk, while a guest is at work.

use std::time::{Duration, Instant};

use guest::{Job, Mode, Transfer, Workload};
use mayfly_tests::{Disk, PATIENCE, Vmm, on_pci};
use serde_json::json;

use super::configured;
use super::pass_bar::{answers_quickly, thread_ticks};

/// Enough work for several seconds.
fn busy() -> Job {
    Job::new(Mode::BenchBlock(Workload {
        write: true,
        random: false,
        block_bytes: 4096,
        depth: 4,
        ops: 100_000_000,
        drive: 0,
        transfer: Transfer::default(),
    }))
}

/// Bytes the process has written to files, by its own account.
fn written(vmm: &Vmm) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", vmm.pid())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[track_caller]
fn set_state(vmm: &Vmm, state: &str) {
    vmm.patch("/vm", &json!({"state": state})).expect_204();
}

/// Waits until the guest makes progress.
#[track_caller]
fn progress(vmm: &Vmm) {
    let (start, deadline) = (written(vmm), Instant::now() + PATIENCE);
    while written(vmm) < start + (1 << 20) {
        assert!(Instant::now() < deadline, "no progress\n{}", vmm.said());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_moves_while_paused_and_all_goes_on_after() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 16 << 20).unwrap();
    let vmm = configured(&busy());
    vmm.drive("d", disk.path(), "Sync");
    vmm.instance_start();
    progress(&vmm);
    for _ in 0..20 {
        set_state(&vmm, "Paused");
        set_state(&vmm, "Paused");
        assert_eq!(vmm.get("/").json()["state"], "Paused");
        answers_quickly(&vmm);
        let still = written(&vmm);
        std::thread::sleep(Duration::from_millis(20));
        // The log lines of the requests are not the guest's; they are short.
        assert!(written(&vmm) - still < 4096, "the guest writes while paused");
        set_state(&vmm, "Resumed");
        set_state(&vmm, "Resumed");
        assert_eq!(vmm.get("/").json()["state"], "Running");
        answers_quickly(&vmm);
        progress(&vmm);
    }
}

/// The vCPUs of a guest that only computes stop, too: there is no exit to wait for.
#[test]
fn a_guest_that_never_exits_is_paused_all_the_same() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let ticks = || thread_ticks(&vmm, "vcpu 0").expect("the vCPU's thread");
    for _ in 0..5 {
        set_state(&vmm, "Paused");
        let still = ticks();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(ticks(), still, "the vCPU runs while paused");
        set_state(&vmm, "Resumed");
        let deadline = Instant::now() + PATIENCE;
        while ticks() < still + 5 {
            assert!(Instant::now() < deadline, "the vCPU does not run again\n{}", vmm.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_console_that_was_paused_goes_on_where_it_was() {
    let vmm = configured(&Job::new(Mode::Hostile("g23-serial-flood".to_owned())).with("bytes", 128_000));
    vmm.instance_start();
    let dots = || vmm.console().all().iter().filter(|line| line.starts_with("...")).count();
    for n in 1..=5 {
        let deadline = Instant::now() + PATIENCE;
        while dots() < n * 300 {
            assert!(Instant::now() < deadline, "{}", vmm.said());
        }
        set_state(&vmm, "Paused");
        // What the guest had written is on its way through the pipe; then there is no more.
        let mut seen = dots();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            if dots() == seen {
                break;
            }
            seen = dots();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(dots(), seen, "output while paused");
        set_state(&vmm, "Resumed");
    }
    super::finish(&vmm);
    assert_eq!(dots(), 2000, "no line is lost or doubled");
    assert!(vmm.console().all().iter().filter(|line| line.starts_with("...")).all(|line| line.len() == 63));
}

#[test]
fn a_paused_machine_ends_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Sync", "Async"] {
        let disk = Disk::sparse(dir.path(), engine, 16 << 20).unwrap();
        let vmm = configured(&busy());
        vmm.drive("d", disk.path(), engine);
        vmm.instance_start();
        let deadline = Instant::now() + PATIENCE;
        while disk.read(0, 4096).unwrap().iter().all(|b| *b == 0) {
            assert!(Instant::now() < deadline, "{engine}: nothing is written\n{}", vmm.said());
        }
        set_state(&vmm, "Paused");
        vmm.signal(libc::SIGTERM);
        assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
        assert!(!vmm.socket().exists(), "the socket is removed");
    }
}

#[test]
fn a_drive_is_swapped_under_load_with_either_engine() {
    for engine in ["Sync", "Async"] {
        let dir = tempfile::tempdir().unwrap();
        let first = Disk::sparse(dir.path(), "first", 16 << 20).unwrap();
        let second = Disk::sparse(dir.path(), "second", 16 << 20).unwrap();
        let vmm = configured(&busy());
        vmm.drive("d", first.path(), engine);
        vmm.instance_start();
        let touched = |disk: &Disk| disk.read(0, 16 << 20).unwrap().iter().any(|b| *b != 0);
        let wait_for = |disk: &Disk| {
            let deadline = Instant::now() + PATIENCE;
            while !touched(disk) {
                assert!(Instant::now() < deadline, "{engine}: nothing is written to {disk:?}\n{}", vmm.said());
            }
        };
        wait_for(&first);
        vmm.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": second.path()})).expect_204();
        wait_for(&second);
        // What is refused changes nothing: the guest goes on writing to the second file.
        let missing = json!({"drive_id": "d", "path_on_host": dir.path().join("missing")});
        vmm.patch("/drives/d", &missing).expect_fault("Unable to patch the block device");
        let config = vmm.get("/vm/config").json();
        assert_eq!(config["drives"][0]["path_on_host"], json!(second.path()));
        std::fs::File::options().write(true).open(second.path()).unwrap().set_len(0).unwrap();
        std::fs::File::options().write(true).open(second.path()).unwrap().set_len(16 << 20).unwrap();
        wait_for(&second);
    }
}

#[test]
fn requests_that_need_a_stopped_machine_are_refused_with_the_contracts_text() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let after = "The requested operation is not supported after starting the microVM.";
    for state in ["Paused", "Resumed"] {
        set_state(&vmm, state);
        let config = vmm.get("/vm/config").json();
        vmm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 64})).expect_fault(after);
        vmm.patch("/machine-config", &json!({"vcpu_count": 2})).expect_fault(after);
        vmm.put("/boot-source", &json!({"kernel_image_path": "/dev/null"})).expect_fault(after);
        if !on_pci() {
            let drive = json!({"drive_id": "d", "path_on_host": "/none", "is_root_device": false});
            vmm.put("/drives/d", &drive).expect_fault(after);
            vmm.put("/network-interfaces/e", &json!({"iface_id": "e", "host_dev_name": "mfnone"})).expect_fault(after);
        }
        vmm.put("/serial", &json!({})).expect_fault(after);
        vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault(after);
        assert_eq!(vmm.get("/vm/config").json(), config, "a refused request changes nothing");
    }
}
