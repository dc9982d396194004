//! A machine that does nothing costs nothing, and one that is gone leaves nothing.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, Vmm, tap};
use serde_json::json;

use super::configured;

/// Voluntary context switches by thread name; of the vCPUs only if `vcpus`.
fn switches(vmm: &Vmm, vcpus: bool) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
        // KVM's own worker lives in our process on some kernels.
        if (name.starts_with("vcpu") && !vcpus) || name.starts_with("kvm") {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        all.insert(name, count.trim().parse().unwrap());
    }
    all
}

#[test]
fn an_idle_machine_wakes_no_thread_of_the_monitor() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    assert_quiet(&vmm, false);
}

#[test]
fn a_paused_machine_wakes_no_thread_at_all() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.machine(4, 64);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    assert_quiet(&vmm, true);
}

/// Once settled, no thread wakes up for a second.
#[track_caller]
fn assert_quiet(vmm: &Vmm, vcpus: bool) {
    // The start is settled when a whole look at it changes nothing; from then on nothing may.
    let mut before = switches(vmm, vcpus);
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(50));
        let now = switches(vmm, vcpus);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before.contains_key("mayfly"), "{before:?}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(vmm, vcpus), before);
}

#[test]
fn fifty_machines_leave_nothing_behind() {
    tap::private_network();
    for n in 0..50 {
        let vmm = configured(&Job::new(Mode::Probe));
        let disk = vmm.file("disk", &[0; 4096]);
        vmm.drive("d", &disk, if n % 2 == 0 { "Sync" } else { "Async" });
        // Not there before, so made by the monitor.
        vmm.network("eth0", "mfcycle", "06:00:00:00:00:01");
        super::run(&vmm);
        let link = Command::new("ip").args(["link", "show", "mfcycle"]).output().unwrap();
        assert!(!link.status.success(), "the tap is still there");
        assert!(!vmm.socket().exists());
        assert!(!std::path::Path::new(&format!("/proc/{}", vmm.pid())).exists(), "the process is reaped");
    }
}
