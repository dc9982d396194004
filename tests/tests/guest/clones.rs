//! Clones: other processes go on with a machine that runs here or was saved, share its memory until they write it, and each is somebody else.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_tests::{Disk, PATIENCE, Vmm, VmmBuilder};
use serde_json::{Value, json};

use super::configured_with;
use super::snapshots::{finish, life, save, set_state, ticks, wait_for_ticks};

/// A process that waits to be a clone, and where.
struct Waiting {
    vmm: Vmm,
    socket: PathBuf,
}

impl Waiting {
    fn new() -> Self {
        Self::of(VmmBuilder::new())
    }

    fn of(builder: VmmBuilder) -> Self {
        let socket = builder.dir().join("clone.sock");
        let vmm = builder.arg("--clone-sock").arg(&socket).start();
        assert!(socket.exists());
        Self { vmm, socket }
    }

    fn child(&self) -> Value {
        json!({"socket": self.socket})
    }
}

/// A process whose machine can be cloned.
pub(super) fn clonable() -> VmmBuilder {
    VmmBuilder::new().arg("--clonable")
}

fn post(vmm: &Vmm, body: &Value) -> mayfly_tests::Response {
    vmm.request("POST", "/clones", Some(&body.to_string()))
}

/// Makes clones of those who wait, each as its `child` says.
#[track_caller]
fn clone_with(vmm: &Vmm, waiting: &[Waiting], child: impl Fn(usize, &Waiting) -> Value, more: Value) -> Value {
    let mut body = more;
    body["children"] = waiting.iter().enumerate().map(|(at, waiting)| child(at, waiting)).collect();
    let answer = post(vmm, &body).expect_200();
    for (made, waiting) in answer["children"].as_array().unwrap().iter().zip(waiting) {
        assert_eq!(made["socket"], json!(waiting.socket));
        assert!(made["load_us"].as_u64().is_some(), "{made}\n{}", waiting.vmm.said());
        // Where it is told that it is somebody else; and what could be unplugged.
        assert!(made["private_bytes"].as_u64().is_some_and(|bytes| bytes >= 8192), "{made}");
        assert!(!waiting.socket.exists(), "whoever is a clone waits no more");
    }
    answer
}

/// The machine as a clone; the original is gone. Both were started to be cloned.
#[track_caller]
pub(super) fn cloned(vmm: Vmm) -> Vmm {
    let waiting = [Waiting::of(clonable())];
    clone_with(&vmm, &waiting, |_, waiting| waiting.child(), json!({}));
    let [Waiting { vmm, .. }] = waiting;
    vmm
}

/// Waits for the end of a clone, which found everything as it was. Its generation id.
#[track_caller]
fn lived(clone: &Vmm) -> String {
    finish(clone);
    let text = clone.console().text();
    let all = ticks(&text);
    for (one, other) in all.iter().zip(all.iter().skip(1)) {
        assert_eq!(one.0 + 1, other.0, "{text}");
    }
    for (_, line) in &all {
        assert!([" doubled=0", " failed=0", " changed=0", " memory=0"].iter().all(|ok| line.contains(ok)), "{line}");
    }
    text.lines().find_map(|line| line.strip_prefix("restored=")).unwrap().split(' ').next().unwrap().to_owned()
}

#[track_caller]
fn clone(vmm: &Vmm, waiting: &[Waiting]) -> Value {
    clone_with(vmm, waiting, |_, waiting| waiting.child(), json!({}))
}

fn distinct(mut ids: Vec<String>) -> bool {
    let count = ids.len();
    ids.sort();
    ids.dedup();
    ids.len() == count
}

/// A machine that was booted gives its memory away as it is, and its clones can be cloned in turn; with a log and without.
#[test]
fn a_running_machine_has_clones_and_they_have_some() {
    for log in [false, true] {
        let parent = configured_with(clonable(), guest::ELF, &life(20).with("pool_mib", 4));
        parent.patch("/machine-config", &json!({"track_dirty_pages": log})).expect_204();
        parent.instance_start();
        wait_for_ticks(&parent, 3);
        let first: Vec<Waiting> = (0..3).map(|_| Waiting::of(clonable())).collect();
        let more = json!({"track_dirty_pages": log});
        let answer = clone_with(&parent, &first, |_, waiting| waiting.child(), more.clone());
        assert_eq!(answer["copied_bytes"], 0, "{answer}");
        assert!(answer["pause_us"].as_u64().unwrap() > 0);
        // The first of them is cloned while it runs, and the parent again.
        let lives = ticks(&parent.console().text()).len();
        let (second, third) = ([Waiting::new(), Waiting::new()], [Waiting::new()]);
        let copied = |answer: Value| answer["copied_bytes"].as_u64().unwrap();
        let of_clone = copied(clone_with(&first[0].vmm, &second, |_, waiting| waiting.child(), more.clone()));
        let again = copied(clone_with(&parent, &third, |_, waiting| waiting.child(), more));
        for copied in [of_clone, again] {
            assert_eq!(copied < 16 << 20, log, "{copied} bytes copied");
            assert!(copied > 0);
        }
        let all = first.iter().chain(&second).chain(&third);
        assert!(distinct(all.map(|clone| lived(&clone.vmm)).collect()), "each has an id of its own");
        wait_for_ticks(&parent, lives + 5);
        let text = parent.console().text();
        assert!(!text.contains("restored="), "the parent is who it was");
        assert!(ticks(&text).iter().all(|(_, line)| line.contains(" memory=0")), "{text}");
    }
}

/// A machine that stands still does so afterwards, and so do clones that are not to run; a disk is copied in between.
#[test]
fn a_paused_machine_has_clones_with_disks_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    for engine in ["Sync", "Async"] {
        let parent = configured_with(clonable(), guest::ELF, &life(20));
        parent.drive("d", disk.path(), engine);
        parent.put("/entropy", &json!({})).expect_204();
        parent.instance_start();
        wait_for_ticks(&parent, 3);
        set_state(&parent, "Paused");
        let waiting: Vec<Waiting> = (0..3).map(|_| Waiting::new()).collect();
        let child = |at: usize, waiting: &Waiting| {
            let copy = dir.path().join(format!("{engine}-{at}"));
            fs::copy(disk.path(), &copy).unwrap();
            let mut child = waiting.child();
            child["drives"] = json!([{"drive_id": "d", "path_on_host": copy}]);
            child["id"] = format!("clone-{at}").into();
            child
        };
        let answer = clone_with(&parent, &waiting, child, json!({"resume_vm": false}));
        assert_eq!(answer["pause_us"], 0);
        assert_eq!(parent.get("/").json()["state"], "Paused");
        set_state(&parent, "Resumed");
        for (at, clone) in waiting.iter().enumerate() {
            let about = clone.vmm.get("/").json();
            assert_eq!((&about["state"], &about["id"]), (&"Paused".into(), &format!("clone-{at}").into()));
            set_state(&clone.vmm, "Resumed");
            assert!(clone.vmm.log().contains(&format!("[clone-{at}:")), "{}", clone.vmm.log());
        }
        assert!(distinct(waiting.iter().map(|clone| lived(&clone.vmm)).collect()));
    }
}

/// Two that write to the same file would destroy what is on it, whatever it is called; two that read it do not.
#[test]
fn a_disk_is_written_by_one_machine_only() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let other_name = dir.path().join("link");
    fs::hard_link(disk.path(), &other_name).unwrap();
    let parent = configured_with(clonable(), guest::ELF, &life(10));
    parent.drive("d", disk.path(), "Sync");
    let shared = Disk::sparse(dir.path(), "shared", 1 << 20).unwrap();
    let read_only =
        json!({"drive_id": "r", "path_on_host": shared.path(), "is_root_device": false, "is_read_only": true});
    parent.put("/drives/r", &read_only).expect_204();
    parent.instance_start();
    wait_for_ticks(&parent, 2);
    let waiting = [Waiting::new()];
    for path in [None, Some(disk.path()), Some(&other_name)] {
        let mut child = waiting[0].child();
        if let Some(path) = path {
            child["drives"] = json!([{"drive_id": "d", "path_on_host": path}]);
        }
        let answer = post(&parent, &json!({"children": [child]})).expect_200();
        let error = answer["children"][0]["error"].as_str().unwrap();
        assert!(error.contains("drive d: ") && error.contains("is what the original writes to"), "{answer}");
    }
    let copy = dir.path().join("copy");
    set_state(&parent, "Paused");
    fs::copy(disk.path(), &copy).unwrap();
    let child = |_, waiting: &Waiting| {
        let mut child = waiting.child();
        child["drives"] = json!([{"drive_id": "d", "path_on_host": copy}]);
        child
    };
    clone_with(&parent, &waiting, child, json!({}));
    lived(&waiting[0].vmm);
}

/// From the files of a snapshot, by a process that has no machine itself and by one that has.
#[test]
fn a_saved_machine_has_clones() {
    let vmm = configured_with(VmmBuilder::new(), guest::ELF, &life(10));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let snapshot = json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()});
    let empty = VmmBuilder::new().start();
    let full = configured_with(clonable(), guest::ELF, &life(10));
    full.instance_start();
    for maker in [&empty, &full] {
        let waiting: Vec<Waiting> = (0..4).map(|_| Waiting::new()).collect();
        let answer = clone_with(maker, &waiting, |_, waiting| waiting.child(), json!({"snapshot": snapshot.clone()}));
        assert_eq!((&answer["copied_bytes"], &answer["pause_us"]), (&0.into(), &0.into()));
        assert!(distinct(waiting.iter().map(|clone| lived(&clone.vmm)).collect()));
    }
    assert_eq!(empty.get("/").json()["state"], "Not started");
    assert_eq!(full.get("/").json()["state"], "Running");
}

#[test]
fn what_cannot_be_cloned_is_refused_and_goes_on() {
    let waiting = Waiting::new();
    let wrong = |vmm: &Vmm, body: Value, text: &str| {
        let fault = post(vmm, &body).expect_fault(text);
        assert!(!fault.is_empty());
    };
    let one = json!({"children": [waiting.child()]});
    let other = |key: &str, value: Value| {
        let mut child = waiting.child();
        child[key] = value;
        json!({"children": [child]})
    };
    let plain = configured_with(VmmBuilder::new(), guest::ELF, &life(10));
    wrong(&plain, one.clone(), "not supported before starting");
    plain.instance_start();
    wrong(&plain, one.clone(), "start it with --clonable");
    let snapshot = json!({"snapshot_path": "/nowhere", "mem_file_path": "/nowhere"});
    let mut of_files = one.clone();
    of_files["snapshot"] = snapshot;
    wrong(&plain, of_files.clone(), "start it with --clonable");
    wrong(&VmmBuilder::new().start(), of_files, "Failed to open snapshot file");

    let parent = configured_with(clonable(), guest::ELF, &life(10));
    parent.instance_start();
    wait_for_ticks(&parent, 1);
    wrong(&parent, json!({"children": []}), "there are 0, and can be 1 to 256");
    wrong(&parent, json!({"children": [waiting.child(), waiting.child()]}), "is another one's, too");
    wrong(&parent, other("id", "no/name".into()), "children[0]: id \"no/name\"");
    wrong(&parent, other("drives", json!([{"drive_id": "d", "path_on_host": "/x"}])), "Unknown Drive");
    wrong(&parent, other("vsock", json!({"guest_cid": 7})), "Unknown Vsock Device");
    wrong(&parent, other("network_interfaces", json!([{"iface_id": "e", "guest_mac": "x"}])), "guest_mac");
    wrong(&parent, other("more", 1.into()), "unknown field `more`");
    assert!(waiting.socket.exists());
    assert_eq!(waiting.vmm.get("/").json()["state"], "Not started");

    // Of several, some do and some do not.
    let busy = Waiting::new();
    busy.vmm.machine(1, 64);
    let nobody = parent.dir().join("nobody");
    let file = parent.file("file", b"no socket");
    let children = json!([{"socket": nobody}, busy.child(), waiting.child(), {"socket": file}]);
    let answer = post(&parent, &json!({"children": children})).expect_200();
    let error = |at: usize| answer["children"][at]["error"].as_str().unwrap_or("none").to_owned();
    assert!(error(0).contains("No such file"), "{answer}");
    assert!(error(1).contains("it has been configured"), "{answer}");
    assert!(answer["children"][2]["load_us"].is_u64(), "{answer}");
    assert!(error(3).contains("Connection refused"), "{answer}");
    assert!(busy.vmm.log().contains("A machine was offered, and not taken"), "{}", busy.vmm.log());
    lived(&waiting.vmm);
    let lives = ticks(&parent.console().text()).len();
    wait_for_ticks(&parent, lives + 2);
}

/// Who waits for a machine may be killed at any moment of it, or never answer: the others go on, and so does the parent, which answers meanwhile.
#[test]
fn whoever_dies_or_sleeps_costs_nobody_else_anything() {
    let parent = configured_with(clonable(), guest::ELF, &life(10));
    parent.instance_start();
    wait_for_ticks(&parent, 1);
    for turn in 0..20u64 {
        let waiting = [Waiting::new(), Waiting::new()];
        let children: Vec<Value> = waiting.iter().map(Waiting::child).collect();
        let mut client = parent.client();
        client.send("POST", "/clones", Some(&json!({"children": children}).to_string())).unwrap();
        std::thread::sleep(Duration::from_micros(turn * 100));
        waiting[0].vmm.signal(9);
        let answer = client.read_response().unwrap().expect_200();
        assert!(answer["children"][1]["load_us"].is_u64(), "{answer}");
        let first = &answer["children"][0];
        assert!(first["load_us"].is_u64() || first["error"].is_string(), "{answer}");
        lived(&waiting[1].vmm);
    }
    let sleeper = Waiting::new();
    let other = Waiting::new();
    sleeper.vmm.signal(libc::SIGSTOP);
    let mut client = parent.client();
    let children = [sleeper.child(), other.child()];
    client.send("POST", "/clones", Some(&json!({"children": children}).to_string())).unwrap();
    lived(&other.vmm);
    // Those who are asked for meanwhile wait, and the machine does not.
    let later = Waiting::new();
    let mut second = parent.client();
    second.send("POST", "/clones", Some(&json!({"children": [later.child()]}).to_string())).unwrap();
    let lives = ticks(&parent.console().text()).len();
    wait_for_ticks(&parent, lives + 10);
    assert_eq!(parent.get("/").json()["state"], "Running");
    let answer = client.read_response().unwrap().expect_200();
    let error = answer["children"][0]["error"].as_str().unwrap();
    assert!(error.contains("it did not go on in time"), "{answer}");
    assert!(answer["children"][1]["load_us"].is_u64(), "{answer}");
    let answer = second.read_response().unwrap().expect_200();
    assert!(answer["children"][0]["load_us"].is_u64(), "{answer}");
    lived(&later.vmm);
    // It was told that it failed, so there is no such machine.
    sleeper.vmm.signal(libc::SIGCONT);
    sleeper.vmm.wait_for_log("it was offered too long ago", PATIENCE);
    assert_eq!(sleeper.vmm.get("/").json()["state"], "Not started");
    clone(&parent, &[sleeper]);
}
