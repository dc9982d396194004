//! A machine that does nothing costs nothing, and one that is gone leaves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, Vmm};

use super::configured;

/// Voluntary context switches of every thread but the vCPUs', by name.
fn switches(vmm: &Vmm) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
        // KVM's own worker lives in our process on some kernels.
        if name.starts_with("vcpu") || name.starts_with("kvm") {
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
    // The start is settled when a whole look at it changes nothing; from then on nothing may.
    let mut before = switches(&vmm);
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(50));
        let now = switches(&vmm);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before.contains_key("vmm"), "{before:?}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(&vmm), before);
}

#[test]
fn fifty_machines_leave_nothing_behind() {
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for _ in 0..50 {
        let vmm = configured(&Job::new(Mode::Probe));
        super::run(&vmm);
        assert!(!vmm.socket().exists());
        assert!(!std::path::Path::new(&format!("/proc/{}", vmm.pid())).exists(), "the process is reaped");
    }
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() <= before + 4, "the test itself leaks");
}
