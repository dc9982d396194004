//! Devices that come and go while the machine runs, on a guest that hears of it as ACPI would tell a kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use guest::{End, Job, Mode};
use mayfly_tests::backend::Backend;
use mayfly_tests::{Disk, PATIENCE, Response, Vmm, VmmBuilder, on_pci};
use serde_json::{Value, json};

use super::configured_with;
use super::network::network;
use super::snapshots::{save, set_state};

const MIB: u64 = 1 << 20;

/// A monitor whose machine has a PCI bus.
pub(crate) fn pci() -> VmmBuilder {
    // The whole tier may be for such machines already.
    if on_pci() { VmmBuilder::new() } else { VmmBuilder::new().arg("--enable-pci") }
}

/// A guest that follows so many comings and goings, not started.
fn following(steps: u64) -> Vmm {
    configured_with(pci(), guest::ELF, &Job::new(Mode::Hotplug { steps }).end(End::Spin))
}

fn running(steps: u64) -> Vmm {
    let vmm = following(steps);
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    vmm
}

fn drive(id: &str, path: &Path) -> Value {
    json!({"drive_id": id, "path_on_host": path, "is_root_device": false})
}

fn put_drive(vmm: &Vmm, id: &str, path: &Path) -> Response {
    vmm.put(&format!("/drives/{id}"), &drive(id, path))
}

fn delete(vmm: &Vmm, path: &str) -> Response {
    vmm.request("DELETE", path, None)
}

/// Waits until the guest has said that for the `count`th time.
#[track_caller]
fn wait_for(vmm: &Vmm, line: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while vmm.console().text().matches(line).count() < count {
        assert!(Instant::now() < deadline && vmm.is_running(), "{line}\n{}", vmm.said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A disk whose first eight bytes are this number.
fn numbered(dir: &Path, name: &str, number: u64) -> Disk {
    let disk = Disk::sparse(dir, name, 4 * MIB).unwrap();
    disk.write(0, &number.to_le_bytes()).unwrap();
    disk
}

#[test]
fn each_kind_of_device_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (numbered(dir.path(), "first", 0x1111), numbered(dir.path(), "second", 0x2222));
    let tap = network("mfplug");
    let vmm = running(100);
    let before = vmm.get("/vm/config").json();
    for (count, engine) in (1..).zip(["Sync", "Async"]) {
        let mut body = drive("d", first.path());
        body["io_engine"] = json!(engine);
        vmm.put("/drives/d", &body).expect_204();
        wait_for(&vmm, "plugged=1 drive=0x1111", count);
        put_drive(&vmm, "e", second.path()).expect_204();
        wait_for(&vmm, "plugged=2 drive=0x2222", count);
        assert_eq!(vmm.get("/vm/config").json()["drives"].as_array().unwrap().len(), 2);
        delete(&vmm, "/drives/d").expect_204();
        delete(&vmm, "/drives/e").expect_204();
        assert_eq!(vmm.get("/vm/config").json(), before, "nothing of them is left");
    }
    for (count, read_only) in (1..).zip([false, true]) {
        let pmem = json!({"id": "p", "path_on_host": first.path(), "read_only": read_only});
        vmm.put("/pmem/p", &pmem).expect_204();
        wait_for(&vmm, "plugged=1 pmem=0x1111", count);
        delete(&vmm, "/pmem/p").expect_204();
    }
    let net = json!({"iface_id": "n", "host_dev_name": tap.name(), "guest_mac": "06:00:ac:10:00:02"});
    for count in 1..=2 {
        vmm.put("/network-interfaces/n", &net).expect_204();
        wait_for(&vmm, "plugged=1 net=0x600ac100002", count);
        delete(&vmm, "/network-interfaces/n").expect_204();
    }
    assert_eq!(vmm.get("/vm/config").json(), before);
    let console = vmm.console().text();
    assert_eq!(console.matches("leaving=").count(), 8, "{console}");
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = numbered(dir.path(), "disk", 1);
    let vmm = following(100);
    vmm.put("/drives/root", &json!({"drive_id": "root", "path_on_host": disk.path(), "is_root_device": true}))
        .expect_204();
    delete(&vmm, "/drives/root").expect_fault("The requested operation is not supported before starting the microVM.");
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    put_drive(&vmm, "d", disk.path()).expect_204();
    let config = vmm.get("/vm/config").json();
    put_drive(&vmm, "d", disk.path()).expect_fault("Device ID in use");
    put_drive(&vmm, "x", &dir.path().join("none")).expect_fault("No such file or directory");
    vmm.put("/drives/x", &json!({"drive_id": "x", "path_on_host": disk.path(), "is_root_device": true}))
        .expect_fault("A root block device already exists!");
    vmm.put("/pmem/x", &json!({"id": "x", "path_on_host": dir.path().join("none")})).expect_fault("No such file");
    vmm.put("/network-interfaces/x", &json!({"iface_id": "x", "host_dev_name": "a/b"})).expect_fault("tap");
    delete(&vmm, "/drives/root").expect_fault("Cannot unplug root device");
    delete(&vmm, "/drives/root?force=true").expect_fault("Cannot unplug root device");
    delete(&vmm, "/drives/x").expect_fault("Device not found");
    delete(&vmm, "/pmem/d").expect_fault("Device not found");
    delete(&vmm, "/network-interfaces/d").expect_fault("Device not found");
    delete(&vmm, "/drives/d?now").expect_fault("now is no parameter of this request");
    delete(&vmm, "/drives/d?timeout_ms=-1").expect_fault("timeout_ms=-1 is no parameter");
    assert_eq!(vmm.get("/vm/config").json(), config, "a refused request changes nothing");
    // F11: slots run out, and come back.
    for n in 3..=31 {
        put_drive(&vmm, &format!("d{n}"), disk.path()).expect_204();
    }
    let full = "PCI manager error: Could not find an available device slot on the PCI bus.";
    put_drive(&vmm, "more", disk.path()).expect_fault(full);
    delete(&vmm, "/drives/d7").expect_204();
    put_drive(&vmm, "more", disk.path()).expect_204();
    put_drive(&vmm, "evenmore", disk.path()).expect_fault(full);
}

#[test]
fn without_a_bus_nothing_comes_or_goes() {
    if on_pci() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = numbered(dir.path(), "disk", 1);
    let vmm = configured_with(VmmBuilder::new(), guest::ELF, &Job::new(Mode::Spin));
    vmm.drive("d", disk.path(), "Sync");
    vmm.instance_start();
    put_drive(&vmm, "e", disk.path())
        .expect_fault("The requested operation is not supported after starting the microVM.");
    delete(&vmm, "/drives/d").expect_fault("PCI is not enabled");
}

/// A guest that does not answer keeps its device, until it is taken away.
#[test]
fn a_guest_that_keeps_a_device_loses_it_by_force_only() {
    let dir = tempfile::tempdir().unwrap();
    let disk = numbered(dir.path(), "disk", 0x77);
    let job = Job::new(Mode::Hotplug { steps: 100 }).with("keep", 1).end(End::Spin);
    let vmm = configured_with(pci(), guest::ELF, &job);
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    put_drive(&vmm, "d", disk.path()).expect_204();
    vmm.wait_for_line("plugged=1 drive=0x77", PATIENCE);
    for _ in 0..3 {
        delete(&vmm, "/drives/d?timeout_ms=50").expect_fault("The guest has not let go of drive d");
    }
    vmm.wait_for_line("leaving=1", PATIENCE);
    put_drive(&vmm, "d", disk.path()).expect_fault("Device ID in use");
    // Others are served while one waits.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = vmm.client();
            client.request("DELETE", "/drives/d?timeout_ms=60000", None).unwrap()
        });
        let line = "API server received a Delete request on \"/drives/d?timeout_ms=60000\"";
        vmm.wait_for_log(line, PATIENCE);
        vmm.get("/vm/config").expect_200();
        put_drive(&vmm, "e", disk.path()).expect_204();
        vmm.request("DELETE", "/drives/d?force=true", None).expect_204();
        let answer = waiting.join().unwrap();
        assert!(answer.status == 204 || answer.status == 400, "{answer:?}");
    });
    assert_eq!(vmm.get("/vm/config").json()["drives"].as_array().unwrap().len(), 1);
    assert!(vmm.is_running());
}

/// G11: with requests in flight a drive is taken away.
#[test]
fn a_busy_drive_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ["Sync", "Async"] {
        let disk = Disk::patterned(dir.path(), engine, 16 * MIB, 3).unwrap();
        let job = Job::new(Mode::Busy { ops: u64::MAX }).end(End::Spin);
        let vmm = configured_with(pci(), guest::ELF, &job);
        vmm.drive("d", disk.path(), engine);
        vmm.put("/entropy", &json!({})).expect_204();
        let tap = network(&format!("mfb{engine}"));
        vmm.network("eth0", tap.name(), "06:00:ac:10:00:02");
        vmm.instance_start();
        vmm.wait_for_line("busy=started", PATIENCE);
        delete(&vmm, "/drives/d?force=true").expect_204();
        delete(&vmm, "/network-interfaces/eth0?force=true").expect_204();
        let (vacant, filled) =
            (vmm.get("/vm/config").json(), Disk::sparse(dir.path(), &format!("{engine}-other"), MIB).unwrap());
        assert_eq!((vacant["drives"].clone(), vacant["network-interfaces"].clone()), (json!([]), json!([])));
        put_drive(&vmm, "d", filled.path()).expect_204();
        assert!(vmm.is_running(), "{}", vmm.said());
        vmm.signal(libc::SIGTERM);
        assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
    }
}

/// The same of a drive that another process serves: nothing is left of the connection.
#[test]
fn a_busy_drive_that_another_process_serves_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::patterned(dir.path(), "disk", 16 * MIB, 3).unwrap();
    let socket = dir.path().join("backend.sock");
    let _backend = Backend::storage(disk.path(), &socket, true);
    let vmm = configured_with(pci(), guest::ELF, &Job::new(Mode::Busy { ops: u64::MAX }).end(End::Spin));
    vmm.put("/drives/d", &json!({"drive_id": "d", "is_root_device": false, "socket": socket})).expect_204();
    vmm.instance_start();
    vmm.wait_for_line("busy=started", PATIENCE);
    let threads = holdings(&vmm)[1];
    put_drive(&vmm, "d", disk.path()).expect_fault("Device ID in use");
    delete(&vmm, "/drives/d?force=true").expect_204();
    assert_eq!(vmm.get("/vm/config").json()["drives"], json!([]));
    assert_eq!(holdings(&vmm)[1], threads - 1, "its thread has ended");
    let file = Disk::sparse(dir.path(), "file", MIB).unwrap();
    put_drive(&vmm, "d", file.path()).expect_204();
    assert!(vmm.is_running(), "{}", vmm.said());
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
}

/// Of a process: descriptors, threads, mappings.
fn holdings(vmm: &Vmm) -> [usize; 3] {
    let proc = format!("/proc/{}", vmm.pid());
    let count = |what: &str| fs::read_dir(format!("{proc}/{what}")).unwrap().count();
    let maps = fs::read_to_string(format!("{proc}/maps")).unwrap();
    [count("fd"), count("task"), maps.lines().count()]
}

/// F11: devices of all kinds come and go many times, and nothing of them is left.
#[test]
fn nothing_is_left_of_devices_that_have_gone() {
    let cycles: usize = std::env::var("MAYFLY_HOTPLUG_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let dir = tempfile::tempdir().unwrap();
    let disk = numbered(dir.path(), "disk", 0x77);
    let tap = network("mfcycle");
    let job = Job::new(Mode::Hotplug { steps: u64::MAX }).with("quiet", 1).end(End::Spin);
    let vmm = configured_with(pci(), guest::ELF, &job);
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    let cycle = |n: usize| {
        let engine = if n.is_multiple_of(2) { "Sync" } else { "Async" };
        let mut body = drive("d", disk.path());
        body["io_engine"] = json!(engine);
        let plugged = vmm.put("/drives/d", &body);
        assert_eq!(plugged.status, 204, "cycle {n}: {plugged:?}\n{}", vmm.said());
        vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": disk.path(), "read_only": n.is_multiple_of(3)}))
            .expect_204();
        let net = json!({"iface_id": "n", "host_dev_name": tap.name(), "guest_mac": "06:00:ac:10:00:02"});
        vmm.put("/network-interfaces/n", &net).expect_204();
        for path in ["/drives/d", "/pmem/p", "/network-interfaces/n"] {
            let gone = delete(&vmm, path);
            assert_eq!(gone.status, 204, "cycle {n}, {path}: {gone:?}\n{}", vmm.said());
        }
    };
    (0..10).for_each(cycle);
    let before = holdings(&vmm);
    (0..cycles).for_each(cycle);
    let after = holdings(&vmm);
    assert_eq!((before[0], before[1]), (after[0], after[1]), "descriptors and threads");
    assert!(after[2] <= before[2] + 8, "mappings: {before:?} {after:?}");
    assert!(!vmm.console().text().contains("error="), "{}", vmm.console().text());
}

/// Where a machine has gaps, and a device that came later, the one that goes on has them, too.
#[test]
fn a_snapshot_has_what_was_plugged() {
    let dir = tempfile::tempdir().unwrap();
    let disks: Vec<Disk> = (1..=4).map(|n| numbered(dir.path(), &format!("disk{n}"), 0x1000 + n)).collect();
    let vmm = following(100);
    vmm.drive("boot", disks[0].path(), "Sync");
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    let pmem = |id: &str, disk: &Disk| json!({"id": id, "path_on_host": disk.path()});
    vmm.put("/pmem/gone", &pmem("gone", &disks[1])).expect_204();
    vmm.wait_for_line("plugged=2 pmem=0x1002", PATIENCE);
    vmm.put("/pmem/stays", &pmem("stays", &disks[2])).expect_204();
    vmm.wait_for_line("plugged=3 pmem=0x1003", PATIENCE);
    put_drive(&vmm, "late", disks[3].path()).expect_204();
    vmm.wait_for_line("plugged=4 drive=0x1004", PATIENCE);
    delete(&vmm, "/pmem/gone").expect_204();
    delete(&vmm, "/drives/boot").expect_204();
    // What comes while the machine stands still is there when it goes on.
    set_state(&vmm, "Paused");
    put_drive(&vmm, "paused", disks[0].path()).expect_204();
    let saved = save(&vmm);
    let config = vmm.get("/vm/config").json();
    drop(vmm);

    let vmm = pci().start();
    vmm.put("/snapshot/load", &saved.load()).expect_204();
    vmm.wait_for_line("plugged=1 drive=0x1001", PATIENCE);
    assert_eq!(vmm.get("/vm/config").json(), config);
    delete(&vmm, "/drives/late").expect_204();
    vmm.wait_for_line("leaving=4", PATIENCE);
    vmm.put("/pmem/again", &pmem("again", &disks[1])).expect_204();
    vmm.wait_for_line("plugged=2 pmem=0x1002", PATIENCE);
    delete(&vmm, "/pmem/stays").expect_204();
    vmm.wait_for_line("leaving=3", PATIENCE);
}

/// A device's numbers are reported as long as it is there.
#[test]
fn metrics_come_and_go_with_devices() {
    let dir = tempfile::tempdir().unwrap();
    let disk = numbered(dir.path(), "disk", 0x55);
    let vmm = following(100);
    let metrics = super::measured(&vmm);
    vmm.instance_start();
    vmm.wait_for_line("hotplug=started", PATIENCE);
    let groups = || {
        vmm.put("/actions", &json!({"action_type": "FlushMetrics"})).expect_204();
        let text = fs::read_to_string(&metrics).unwrap();
        let line: BTreeMap<String, Value> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let drives = line.keys().filter(|key| key.starts_with("block_")).cloned().collect::<Vec<_>>();
        (drives, line["block"]["read_count"].as_u64().unwrap())
    };
    assert_eq!(groups(), (vec![], 0));
    put_drive(&vmm, "late", disk.path()).expect_204();
    vmm.wait_for_line("plugged=1 drive=0x55", PATIENCE);
    assert_eq!(groups(), (vec!["block_late".to_owned()], 1));
    delete(&vmm, "/drives/late").expect_204();
    assert_eq!(groups(), (vec![], 0));
}
