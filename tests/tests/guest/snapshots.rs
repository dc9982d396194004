//! Snapshots: a machine is saved, another process goes on with it, and its guest, which checks everything, notices nothing but that it has
//! another identity.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Job, Mode};
use mayfly_tests::{Disk, PATIENCE, Response, Vmm, VmmBuilder};
use serde_json::{Value, json};

use super::network::{attach, network};
use super::{configured, configured_with};

/// What a guest tells on its console, by however many processes.
struct Told {
    dir: tempfile::TempDir,
}

impl Told {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A process that adds to it.
    fn by(&self) -> VmmBuilder {
        let file = fs::File::options().create(true).append(true).open(self.dir.path().join("told")).unwrap();
        VmmBuilder::new().stdout(file)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.dir.path().join("told")).unwrap()
    }

    #[track_caller]
    fn wait_for_ticks(&self, vmm: &Vmm, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while ticks(&self.text()).len() < count {
            assert!(Instant::now() < deadline && vmm.is_running(), "{}\n{}", self.text(), vmm.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The whole life: no tick is missing or told twice, and nothing was wrong.
    #[track_caller]
    fn check(&self) {
        let told = self.text();
        let ticks = ticks(&told);
        assert!(!ticks.is_empty(), "{told}");
        for (at, (tick, line)) in (1..).zip(&ticks) {
            assert_eq!(*tick, at, "{told}");
            for nothing in [" doubled=0", " failed=0", " changed=0", " memory=0", " random=0"] {
                assert!(line.contains(nothing), "{line}");
            }
        }
        assert!(!told.contains("life=stuck"), "{told}");
    }
}

/// A saved machine.
struct Saved {
    dir: tempfile::TempDir,
}

impl Saved {
    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn memory(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    /// What `PUT /snapshot/load` wants.
    fn load(&self) -> Value {
        let backend = json!({"backend_type": "File", "backend_path": self.memory()});
        json!({"snapshot_path": self.state(), "mem_backend": backend, "resume_vm": true})
    }
}

#[track_caller]
fn set_state(vmm: &Vmm, state: &str) {
    vmm.patch("/vm", &json!({"state": state})).expect_204();
}

fn create(vmm: &Vmm, saved: &Saved) -> Response {
    vmm.put("/snapshot/create", &json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}))
}

/// Saves the machine, which stands still afterwards.
#[track_caller]
fn save(vmm: &Vmm) -> Saved {
    let saved = Saved { dir: tempfile::tempdir().unwrap() };
    set_state(vmm, "Paused");
    create(vmm, &saved).expect_204();
    saved
}

/// The machine in another process. `change` sees the request to load it.
#[track_caller]
pub(super) fn moved_with(vmm: Vmm, before: impl FnOnce(&Vmm), change: impl FnOnce(&mut Value)) -> Vmm {
    let saved = save(&vmm);
    drop(vmm);
    let vmm = VmmBuilder::new().start();
    before(&vmm);
    let mut load = saved.load();
    change(&mut load);
    vmm.put("/snapshot/load", &load).expect_204();
    vmm
}

/// The machine in another process.
#[track_caller]
pub(super) fn moved(vmm: Vmm) -> Vmm {
    moved_with(vmm, |_| {}, |_| {})
}

/// Another process that goes on with it.
#[track_caller]
fn restored(saved: &Saved) -> Vmm {
    restored_by(VmmBuilder::new(), saved)
}

#[track_caller]
fn restored_by(builder: VmmBuilder, saved: &Saved) -> Vmm {
    let vmm = builder.start();
    vmm.put("/snapshot/load", &saved.load()).expect_204();
    vmm
}

/// Waits for the end of a restored machine, which has not told how it began.
#[track_caller]
pub(super) fn finish(vmm: &Vmm) {
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    let text = vmm.console().text();
    assert!(text.contains("mayfly-guest done") && !text.contains("panic="), "{}", vmm.said());
}

fn life(after: u64) -> Job {
    Job::new(Mode::Life { after })
}

/// The ticks in lines that are whole.
fn ticks(text: &str) -> Vec<(u64, &str)> {
    let text = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let tick = |line: &str| line.strip_prefix("tick=")?.split(' ').next()?.parse().ok();
    text.lines().filter_map(|line| Some((tick(line)?, line))).collect()
}

#[track_caller]
fn wait_for_ticks(vmm: &Vmm, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while ticks(&vmm.console().text()).len() < count {
        assert!(Instant::now() < deadline && vmm.is_running(), "{}", vmm.said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn living(told: &Told, after: u64) -> Vmm {
    configured_with(told.by(), guest::ELF, &life(after))
}

#[test]
fn a_guest_goes_on_where_it_was() {
    let told = Told::new();
    let vmm = living(&told, 20);
    vmm.instance_start();
    told.wait_for_ticks(&vmm, 5);
    let saved = save(&vmm);
    drop(vmm);
    let vmm = restored_by(told.by(), &saved);
    assert_eq!(vmm.get("/").json()["state"], "Running");
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    let text = told.text();
    assert_eq!((text.matches("restored=").count(), text.matches("life=over").count()), (1, 1), "{text}");
    told.check();
}

#[test]
fn devices_lose_and_double_nothing() {
    for engine in ["Sync", "Async"] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
        let tap = network("mfsnap");
        let told = Told::new();
        let mut vmm = living(&told, 1_000_000);
        vmm.drive("d", disk.path(), engine);
        attach(&vmm, &tap);
        vmm.put("/entropy", &json!({})).expect_204();
        vmm.instance_start();
        for round in 1..=20 {
            told.wait_for_ticks(&vmm, 2 * round);
            let saved = save(&vmm);
            drop(vmm);
            vmm = restored_by(told.by(), &saved);
        }
        told.wait_for_ticks(&vmm, 50);
        told.check();
        let text = told.text();
        let (_, last) = *ticks(&text).last().unwrap();
        assert!(!last.contains("answers=0 ") && !last.contains("frames=0 ") && !last.contains("draws=0 "), "{last}");
        assert_eq!(text.matches("restored=").count(), 20);
    }
}

/// The one that was saved goes on as well.
#[test]
fn saving_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let told = Told::new();
    let vmm = living(&told, 10);
    vmm.drive("d", disk.path(), "Sync");
    vmm.instance_start();
    for round in 1..=5 {
        told.wait_for_ticks(&vmm, 5 * round);
        save(&vmm);
        set_state(&vmm, "Resumed");
    }
    told.wait_for_ticks(&vmm, 30);
    assert!(!told.text().contains("restored="));
    told.check();
}

/// R4, R5: a base that nobody changes, and guests that know that they are several.
#[test]
fn clones_share_a_base_and_nothing_else() {
    let vmm = configured(&life(5).with("pool_mib", 16));
    vmm.instance_start();
    wait_for_ticks(&vmm, 3);
    let saved = save(&vmm);
    drop(vmm);
    let base = fs::read(saved.memory()).unwrap();
    let clones: Vec<Vmm> = (0..10).map(|_| restored(&saved)).collect();
    let mut ids: Vec<String> = clones
        .iter()
        .map(|vmm| {
            finish(vmm);
            let text = vmm.console().text();
            text.lines().find_map(|line| line.strip_prefix("restored=")).unwrap().split(' ').next().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), clones.len(), "each has an id of its own");
    assert!(fs::read(saved.memory()).unwrap() == base, "the base is as it was");
}

#[test]
fn a_memory_file_has_holes_where_memory_was_not_used() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.machine(1, 512);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let saved = save(&vmm);
    let memory = fs::metadata(saved.memory()).unwrap();
    assert_eq!(memory.len(), 512 << 20);
    assert!(memory.blocks() * 512 < 4 << 20, "{} bytes", memory.blocks() * 512);
    assert!(fs::metadata(saved.state()).unwrap().len() < 64 << 10);
}

#[test]
fn a_machine_that_is_not_resumed_stands_still() {
    let vmm = configured(&life(3));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    drop(vmm);
    let vmm = VmmBuilder::new().start();
    let mut load = saved.load();
    load["resume_vm"] = json!(false);
    vmm.put("/snapshot/load", &load).expect_204();
    assert_eq!(vmm.get("/").json()["state"], "Paused");
    // Saved again as it is, which is the same machine.
    let again = save(&vmm);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ticks(&vmm.console().text()).len(), 0);
    set_state(&vmm, "Resumed");
    finish(&vmm);
    finish(&restored(&again));
}

#[test]
fn the_configuration_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let vmm = configured(&life(3));
    vmm.drive("d", disk.path(), "Sync");
    vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": dir.path().join("v.sock")})).expect_204();
    vmm.put("/balloon", &json!({"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1})).expect_204();
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let before = vmm.get("/vm/config").json();
    drop(vmm);
    // Killed, it could not remove it.
    fs::remove_file(dir.path().join("v.sock")).unwrap();
    let vmm = restored(&saved);
    assert_eq!(vmm.get("/vm/config").json(), before);
    finish(&vmm);
}

#[track_caller]
fn refused(vmm: &Vmm, load: &Value, text: &str) {
    let reply = vmm.put("/snapshot/load", load);
    reply.expect_fault(text);
    // As if nothing had been asked.
    assert_eq!(vmm.get("/").json()["state"], "Not started");
}

/// S1, S3, and the texts that clients wait for.
#[test]
fn what_cannot_be_loaded_is_refused_and_leaves_nothing() {
    let vmm = configured(&life(3));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    create(&vmm, &Saved { dir: tempfile::tempdir().unwrap() }).expect_fault("save/restore unavailable while running");
    let saved = save(&vmm);
    vmm.put("/snapshot/load", &saved.load()).expect_fault("not supported after starting the microVM");
    drop(vmm);
    let (state, memory) = (fs::read(saved.state()).unwrap(), saved.memory());

    let vmm = VmmBuilder::new().start();
    vmm.put("/snapshot/create", &json!({"snapshot_path": "s", "mem_file_path": "m"}))
        .expect_fault("not supported before starting the microVM");
    let with = |key: &str, value: Value| {
        let mut load = saved.load();
        load[key] = value;
        load
    };
    let backend = |path: &Path| with("mem_backend", json!({"backend_type": "File", "backend_path": path}));
    let nowhere = Path::new("/nowhere/at/all");
    refused(
        &vmm,
        &with("snapshot_path", json!(nowhere)),
        "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)",
    );
    refused(
        &vmm,
        &backend(nowhere),
        "Load snapshot error: Failed to restore from snapshot: Failed to load guest memory: Error creating guest memory from file: Failed to load guest memory: No such file or directory (os error 2)",
    );
    let damaged = |name: &str, bytes: &[u8]| {
        let path = saved.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        with("snapshot_path", json!(path))
    };
    refused(&vmm, &damaged("empty", b""), "IO Error: File too short to contain CRC");
    refused(&vmm, &damaged("short", &state[..state.len() / 2]), "CRC does not match");
    refused(&vmm, &damaged("text", &[b'x'; 5000]), "not a Mayfly state file");
    let short = saved.dir.path().join("short-memory");
    fs::write(&short, b"words").unwrap();
    refused(&vmm, &backend(&short), "the file has 5 bytes");
    let other = saved.dir.path().join("other-memory");
    fs::File::create(&other).unwrap().set_len(fs::metadata(&memory).unwrap().len()).unwrap();
    refused(&vmm, &backend(&other), "not of the same snapshot");
    refused(
        &vmm,
        &with("network_overrides", json!([{"iface_id": "eth0", "host_dev_name": "tap9"}])),
        "Unknown Network Device",
    );
    refused(&vmm, &with("vsock_override", json!({"uds_path": "/tmp/v.sock"})), "Unknown Vsock Device");
    refused(&vmm, &with("huge_pages", json!("2M")), "hugetlbfs");
    // And then all is as before.
    vmm.put("/snapshot/load", &saved.load()).expect_204();
    finish(&vmm);

    let vmm = VmmBuilder::new().start();
    vmm.machine(1, 128);
    refused(&vmm, &saved.load(), "Loading a microVM snapshot not allowed after configuring boot-specific resources.");
}
