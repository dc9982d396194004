//! What a guest wants first: the first restore of a snapshot records it, and later ones bring it ahead.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_tests::{PATIENCE, Vmm, VmmBuilder};
use serde_json::{Value, json};

use super::configured;
use super::pass_bar::rss_mib;
use super::snapshots::{RESTORE, Saved, life, rounds, save, set_state, ticks, wait_for_ticks};

/// Memory that the guest works on.
const POOL_MIB: u64 = 16;
const PAGES: u64 = POOL_MIB << 8;

fn saved() -> Saved {
    let vmm = configured(&life(1_000_000).with("pool_mib", POOL_MIB));
    vmm.instance_start();
    wait_for_ticks(&vmm, 3);
    save(&vmm)
}

fn ask(saved: &Saved, set: &Path, resume: bool) -> Value {
    json!({
        "snapshot_path": saved.state(), "mem_backend": {"backend_type": "File", "backend_path": saved.memory()},
        "resume_vm": resume, "working_set_path": set,
    })
}

fn restored(saved: &Saved, set: &Path, resume: bool) -> Vmm {
    let vmm = VmmBuilder::new().start();
    vmm.put(RESTORE, &ask(saved, set, resume)).expect_204();
    vmm
}

fn threads(vmm: &Vmm) -> Vec<String> {
    let report = vmm.get("/confinement").expect_200();
    let threads = report["threads"].as_array().unwrap().iter();
    assert!(threads.clone().all(|thread| thread["seccomp"] == "filter"), "{report}");
    threads.map(|thread| thread["role"].as_str().unwrap().to_owned()).collect()
}

/// Pages of the set that was written, as the log has it.
#[track_caller]
fn recorded(vmm: &Vmm) -> u64 {
    let line = vmm.wait_for_log("The working set of ", PATIENCE);
    let (_, rest) = line.split_once("The working set of ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until each page of the pool had its turn since the machine was restored, and found what it should.
#[track_caller]
fn goes_round(vmm: &Vmm) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = vmm.console().text();
        let all = ticks(&text);
        assert!(all.iter().all(|(_, line)| line.contains(" memory=0")), "{text}");
        if let (Some((_, first)), Some((_, last))) = (all.first(), all.last())
            && rounds(last) >= rounds(first) + 2
        {
            return;
        }
        assert!(Instant::now() < deadline && vmm.is_running(), "{}", vmm.said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_is_wanted_is_recorded_once_and_brought_ahead_from_then_on() {
    let saved = saved();
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");

    // Recorded until it is paused.
    let vmm = restored(&saved, &set, true);
    assert!(threads(&vmm).contains(&"pager".to_owned()));
    goes_round(&vmm);
    assert!(!set.exists());
    set_state(&vmm, "Paused");
    let pages = recorded(&vmm);
    assert!((PAGES..PAGES + 500).contains(&pages), "{pages} pages");
    assert!(set.exists());
    set_state(&vmm, "Resumed");
    let lives = ticks(&vmm.console().text()).len();
    wait_for_ticks(&vmm, lives + 2);

    // Brought before anybody asks: the guest stands still.
    let resident = |set: Option<&Path>| {
        let vmm = VmmBuilder::new().start();
        let mut ask = ask(&saved, Path::new(""), false);
        ask["working_set_path"] = json!(set);
        vmm.put(RESTORE, &ask).expect_204();
        vmm
    };
    let without = rss_mib(&resident(None));
    let vmm = resident(Some(&set));
    assert!(threads(&vmm).contains(&"prefetch".to_owned()));
    let deadline = Instant::now() + PATIENCE;
    while rss_mib(&vmm) < without + POOL_MIB - 1 {
        assert!(Instant::now() < deadline, "{} MiB, {without} without", rss_mib(&vmm));
        std::thread::sleep(Duration::from_millis(5));
    }
    set_state(&vmm, "Resumed");
    goes_round(&vmm);
    // And for one that runs at once.
    goes_round(&restored(&saved, &set, true));
}

/// The end of the machine is the end of the recording, too; a set of another snapshot is recorded anew.
#[test]
fn a_set_belongs_to_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let saved = saved();
        let vmm = restored(&saved, &set, true);
        assert!(threads(&vmm).contains(&"pager".to_owned()));
        goes_round(&vmm);
        vmm.signal(libc::SIGTERM);
        assert_eq!(vmm.wait_exit(PATIENCE), 143);
        assert!(recorded(&vmm) >= PAGES);
        contents.push(fs::read(&set).unwrap());
        assert!(!contents.iter().rev().skip(1).any(|other| Some(other) == contents.last()));
    }
}

#[test]
fn what_is_no_working_set_is_refused_and_leaves_nothing() {
    let saved = saved();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let vmm = VmmBuilder::new().start();
    let refused = |ask: &Value, text: &str| {
        let fault = vmm.put(RESTORE, ask).expect_fault(text);
        assert!(fault.contains("working_set_path"), "{fault}");
        assert_eq!(vmm.get("/").json()["state"], "Not started");
    };
    refused(&ask(&saved, &file("garbage", b"garbage"), true), "it is no");
    refused(&ask(&saved, &saved.state(), true), "working set");
    refused(&ask(&saved, dir.path(), true), "");
    let mut by_handler = ask(&saved, &dir.path().join("set"), true);
    by_handler["mem_backend"] = json!({"backend_type": "Uffd", "backend_path": "/nowhere"});
    refused(&by_handler, "memory has to come from a file");
    // It can still be loaded, and where no set can be written the machine goes on.
    vmm.put(RESTORE, &ask(&saved, Path::new("/nowhere/set"), true)).expect_204();
    goes_round(&vmm);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143);
    assert!(vmm.log().contains("The working set cannot be written to /nowhere/set"), "{}", vmm.log());
}

/// A page that cannot be had ends the machine: nobody waits for ever.
#[test]
fn a_file_that_becomes_shorter_ends_a_machine_that_is_recorded() {
    let saved = saved();
    let dir = tempfile::tempdir().unwrap();
    let vmm = restored(&saved, &dir.path().join("set"), false);
    fs::File::options().write(true).open(saved.memory()).unwrap().set_len(4096).unwrap();
    // The machine may be lost before that is answered.
    let _ = vmm.client().request("PATCH", "/vm", Some(r#"{"state": "Resumed"}"#));
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains("a page of the memory file cannot be had"), "{}", vmm.log());
}
