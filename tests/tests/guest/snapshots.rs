//! Snapshots: a machine is saved, another process goes on with it, and its guest, which checks everything, notices nothing but that it has
//! another identity.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest::{Job, Mode};
use mayfly_tests::{Disk, PATIENCE, Response, Tap, Vmm, VmmBuilder, on_pci};
use serde_json::{Value, json};
use vmm_sys_util::seek_hole::SeekHole;

use super::network::{attach, network};
use super::{configured, configured_with};

/// v1's route to load a snapshot, and ours.
pub(super) const LOAD: &str = "/snapshot/load";
pub(super) const RESTORE: &str = "/snapshot/restore";

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

    /// The machine, once it has lived for so many ticks; its process is gone.
    #[track_caller]
    fn saved_after(&self, vmm: Vmm, ticks: usize) -> Saved {
        vmm.instance_start();
        self.wait_for_ticks(&vmm, ticks);
        save(&vmm)
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
pub(super) struct Saved {
    dir: tempfile::TempDir,
}

impl Saved {
    /// Where one can be, and nothing is yet.
    pub(super) fn nothing() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Where both files are, and nothing else.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(super) fn memory(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    /// What `PUT /snapshot/load` wants.
    pub(super) fn load(&self) -> Value {
        let backend = json!({"backend_type": "File", "backend_path": self.memory()});
        json!({"snapshot_path": self.state(), "mem_backend": backend, "resume_vm": true})
    }

    /// The same, with one thing otherwise.
    fn load_with(&self, key: &str, value: Value) -> Value {
        let mut load = self.load();
        load[key] = value;
        load
    }
}

#[track_caller]
pub(super) fn set_state(vmm: &Vmm, state: &str) {
    vmm.patch("/vm", &json!({"state": state})).expect_204();
}

pub(super) fn create(vmm: &Vmm, saved: &Saved) -> Response {
    vmm.put("/snapshot/create", &json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}))
}

/// Saves the machine, which stands still afterwards.
#[track_caller]
pub(super) fn save(vmm: &Vmm) -> Saved {
    let saved = Saved { dir: tempfile::tempdir().unwrap() };
    set_state(vmm, "Paused");
    create(vmm, &saved).expect_204();
    saved
}

/// The machine, once it has lived for so many ticks; its process is gone.
#[track_caller]
fn saved_after(vmm: Vmm, ticks: usize) -> Saved {
    vmm.instance_start();
    wait_for_ticks(&vmm, ticks);
    save(&vmm)
}

/// The machine in another process. `ask` sees the request to load it, and says by which route.
#[track_caller]
pub(super) fn moved_with(vmm: Vmm, ask: impl FnOnce(&Vmm, &mut Value) -> &'static str) -> Vmm {
    let saved = save(&vmm);
    drop(vmm);
    let vmm = VmmBuilder::new().start();
    let mut load = saved.load();
    let route = ask(&vmm, &mut load);
    vmm.put(route, &load).expect_204();
    vmm
}

/// The machine in another process.
#[track_caller]
pub(super) fn moved(vmm: Vmm) -> Vmm {
    moved_with(vmm, |_, _| LOAD)
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

pub(super) fn life(after: u64) -> Job {
    Job::new(Mode::Life { after })
}

/// The ticks in lines that are whole.
pub(super) fn ticks(text: &str) -> Vec<(u64, &str)> {
    let text = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let tick = |line: &str| line.strip_prefix("tick=")?.split(' ').next()?.parse().ok();
    text.lines().filter_map(|line| Some((tick(line)?, line))).collect()
}

/// How often all of the pool had had its turn, as the line of a tick says.
pub(super) fn rounds(line: &str) -> u64 {
    let (_, rest) = line.split_once(" rounds=").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[track_caller]
pub(super) fn wait_for_ticks(vmm: &Vmm, count: usize) {
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
    let saved = told.saved_after(vmm, 5);
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
        const TIMES: usize = 100;
        for round in 1..=TIMES {
            told.wait_for_ticks(&vmm, round);
            let saved = save(&vmm);
            drop(vmm);
            vmm = restored_by(told.by(), &saved);
        }
        told.wait_for_ticks(&vmm, TIMES + 10);
        told.check();
        let text = told.text();
        let (_, last) = *ticks(&text).last().unwrap();
        assert!(!last.contains("answers=0 ") && !last.contains("frames=0 ") && !last.contains("draws=0 "), "{last}");
        // Whoever is saved before it looks at its id has seen one less.
        assert!(text.matches("restored=").count() >= TIMES / 2, "{}", text.matches("restored=").count());
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
    let vmm = configured(&life(40).with("pool_mib", 4));
    let saved = saved_after(vmm, 3);
    let base = fs::read(saved.memory()).unwrap();
    let clones: Vec<Vmm> = (0..50).map(|_| restored(&saved)).collect();
    let mut ids: Vec<String> = clones
        .iter()
        .map(|vmm| {
            finish(vmm);
            let text = vmm.console().text();
            let ticks = ticks(&text);
            let ((_, first), (_, last)) = (ticks[0], *ticks.last().unwrap());
            assert!(rounds(last) > rounds(first) + 1, "each page was written since: {first}, {last}");
            assert!(last.contains(" memory=0"), "{last}");
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

/// However a machine came about: the API server opens no more files, and what the guest knows is in no core dump.
#[test]
fn a_restored_machine_is_as_confined_as_one_that_was_booted() {
    let told = Told::new();
    let saved = told.saved_after(living(&told, 0), 1);
    let vmm = restored(&saved);
    let report = vmm.get("/confinement").expect_200();
    let threads = report["threads"].as_array().unwrap();
    let api = threads.iter().find(|thread| thread["role"] == "api").unwrap();
    assert_eq!(api["opens_files"], false, "{api}");
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (_, of_memory) = maps.split_once(saved.memory().to_str().unwrap()).expect("the file is mapped");
    let flags = of_memory.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
    assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
}

#[test]
fn a_machine_that_is_not_resumed_stands_still() {
    let vmm = configured(&life(3));
    let saved = saved_after(vmm, 2);
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load_with("resume_vm", json!(false))).expect_204();
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
    let with = |key: &str, value: Value| saved.load_with(key, value);
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

/// A page-fault handler in a process of its own, which ends with this.
struct Handler {
    process: Child,
    _dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Handler {
    fn start(memory: &Path, faults: Option<u64>) -> Self {
        Self::with(memory, &faults.map(|faults| faults.to_string()).into_iter().collect::<Vec<_>>())
    }

    /// One that does nothing any more after so many faults.
    fn that_falls_silent(memory: &Path, faults: u64) -> Self {
        Self::with(memory, &[faults.to_string(), "silent".to_owned()])
    }

    fn with(memory: &Path, more: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("uffd.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_uffd-handler"));
        command.arg(&socket).arg(memory).args(more);
        let process = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the handler does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { process, _dir: dir, socket }
    }

    fn load(&self, saved: &Saved) -> Value {
        saved.load_with("mem_backend", json!({"backend_type": "Uffd", "backend_path": self.socket}))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_page_fault_handler_brings_memory() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let told = Told::new();
    let vmm = living(&told, 20);
    vmm.drive("d", disk.path(), "Sync");
    vmm.put("/entropy", &json!({})).expect_204();
    let saved = told.saved_after(vmm, 3);
    let handler = Handler::start(&saved.memory(), None);
    let vmm = told.by().start();
    vmm.put("/snapshot/load", &handler.load(&saved)).expect_204();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    told.check();
    assert!(told.text().contains("life=over"));
}

/// Huge pages of the host, as long as it lives. One at a time, since their number is the host's.
pub(super) struct HugePages {
    before: u32,
    _alone: MutexGuard<'static, ()>,
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    #[track_caller]
    pub(super) fn reserve(count: u32) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let have = || -> u32 { fs::read_to_string(HUGE_PAGES).unwrap().trim().parse().unwrap() };
        let before = have();
        fs::write(HUGE_PAGES, (before + count).to_string()).expect("this test needs root");
        let this = Self { before, _alone: alone };
        assert_eq!(have(), before + count, "the host has no room for {count} huge pages");
        this
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.before.to_string());
    }
}

/// A machine whose memory is made of huge pages is saved, and goes on in pages that a handler brings, huge ones again or not.
#[test]
fn a_handler_brings_huge_pages() {
    let _pages = HugePages::reserve(48);
    let told = Told::new();
    let vmm = living(&told, 10);
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"})).expect_204();
    let saved = told.saved_after(vmm, 3);
    refused(&VmmBuilder::new().start(), &saved.load(), "hugetlbfs");
    for pages in ["2M", "None"] {
        let handler = Handler::start(&saved.memory(), None);
        let vmm = VmmBuilder::new().start();
        let mut load = handler.load(&saved);
        load["huge_pages"] = json!(pages);
        vmm.put(LOAD, &load).expect_204();
        assert_eq!(vmm.get("/machine-config").json()["huge_pages"], pages);
        finish(&vmm);
        let text = vmm.console().text();
        assert!(ticks(&text).iter().all(|(_, line)| line.contains(" memory=0")), "{text}");
    }
    // And by a file, in the host's own pages.
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load_with("huge_pages", json!("None"))).expect_204();
    finish(&vmm);
}

/// S7: the guest cannot go on, and whoever asks is told why.
#[test]
fn a_handler_that_dies_ends_the_machine() {
    let vmm = configured(&life(1_000_000).with("pool_mib", 16));
    let saved = saved_after(vmm, 2);
    for faults in [1, 50, 1000] {
        let handler = Handler::start(&saved.memory(), Some(faults));
        let vmm = VmmBuilder::new().start();
        // Whether there is an answer depends on whose page is the last one.
        let _ = vmm.client().request("PUT", "/snapshot/load", Some(&handler.load(&saved).to_string()));
        assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
        assert!(vmm.log().contains("the page-fault handler has ended"), "{}", vmm.log());
    }
}

/// S7: whoever waits for a page waits, and nobody else: the machine can be asked, and ended.
#[test]
fn a_handler_that_falls_silent_holds_up_the_guest_only() {
    let vmm = configured(&life(1_000_000).with("pool_mib", 16));
    let saved = saved_after(vmm, 2);
    let handler = Handler::that_falls_silent(&saved.memory(), 1000);
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &handler.load(&saved)).expect_204();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        assert_eq!(vmm.get("/").json()["state"], "Running");
        std::thread::sleep(Duration::from_millis(50));
    }
    let lives = ticks(&vmm.console().text()).len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ticks(&vmm.console().text()).len(), lives, "the guest waits");
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
}

/// And a load that waits for one is given up.
#[test]
fn a_handler_that_brings_nothing_ends_the_load() {
    let vmm = configured(&life(1_000_000));
    let saved = saved_after(vmm, 2);
    let handler = Handler::that_falls_silent(&saved.memory(), 0);
    let vmm = VmmBuilder::new().start();
    let mut client = vmm.client();
    client.send("PUT", LOAD, Some(&handler.load(&saved).to_string())).unwrap();
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(
        vmm.log().contains("the page-fault handler has not brought in 15 s what the load waits for"),
        "{}",
        vmm.log()
    );
}

#[test]
fn a_handler_that_is_not_there_is_named() {
    let vmm = configured(&life(1));
    let saved = saved_after(vmm, 2);
    let vmm = VmmBuilder::new().start();
    let mut load = saved.load();
    load["mem_backend"] = json!({"backend_type": "Uffd", "backend_path": "/nowhere/uffd.sock"});
    refused(
        &vmm,
        &load,
        "Load snapshot error: Failed to restore from snapshot: Failed to load guest memory: Error creating guest memory from uffd: Failed to connect to UDS Unix stream: No such file or directory (os error 2)",
    );
    vmm.put("/snapshot/load", &saved.load()).expect_204();
    finish(&vmm);
}

pub(super) fn create_diff(vmm: &Vmm, saved: &Saved, memory: &Path) {
    let body = json!({"snapshot_type": "Diff", "snapshot_path": saved.state(), "mem_file_path": memory});
    vmm.put("/snapshot/create", &body).expect_204();
}

/// Whether two files hold the same, however many holes each has.
pub(super) fn same_contents(one: &Path, other: &Path) -> bool {
    let (one, other) = (fs::File::open(one).unwrap(), fs::File::open(other).unwrap());
    let len = one.metadata().unwrap().len();
    assert_eq!(len, other.metadata().unwrap().len());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    (0..len).step_by(1 << 20).all(|at| {
        let count = usize::try_from((len - at).min(1 << 20)).unwrap();
        one.read_exact_at(&mut left[..count], at).unwrap();
        other.read_exact_at(&mut right[..count], at).unwrap();
        left[..count] == right[..count]
    })
}

/// Lays what is no hole in `diff` over `base`, as tools of v1 do.
fn rebase(base: &Path, diff: &Path) {
    let base = fs::File::options().write(true).open(base).unwrap();
    let mut diff = fs::File::open(diff).unwrap();
    let len = diff.metadata().unwrap().len();
    let mut at = 0;
    while let Some(data) = diff.seek_data(at).unwrap() {
        at = diff.seek_hole(data).unwrap().unwrap_or(len);
        let mut bytes = vec![0; usize::try_from(at - data).unwrap()];
        diff.read_exact_at(&mut bytes, data).unwrap();
        base.write_all_at(&bytes, data).unwrap();
    }
}

/// R7: what devices wrote counts as what the guest wrote does, and a chain of differences is as good as the whole.
#[test]
fn differences_add_up_to_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let told = Told::new();
    let tap = network("mfdiff");
    let vmm = living(&told, 10);
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": true})).expect_204();
    vmm.drive("d", disk.path(), "Async");
    attach(&vmm, &tap);
    vmm.put("/entropy", &json!({})).expect_204();
    vmm.instance_start();
    told.wait_for_ticks(&vmm, 2);
    // The first one has everything since the start.
    let saved = Saved { dir: tempfile::tempdir().unwrap() };
    set_state(&vmm, "Paused");
    create_diff(&vmm, &saved, &saved.memory());
    let merged_elsewhere = dir.path().join("merged");
    fs::copy(saved.memory(), &merged_elsewhere).unwrap();
    let whole = Saved { dir: tempfile::tempdir().unwrap() };
    for round in 1..=20 {
        set_state(&vmm, "Resumed");
        told.wait_for_ticks(&vmm, 2 + 2 * round);
        set_state(&vmm, "Paused");
        if round % 2 == 0 {
            // In the file that is there.
            create_diff(&vmm, &saved, &saved.memory());
            fs::copy(saved.memory(), &merged_elsewhere).unwrap();
        } else {
            let alone = dir.path().join(format!("diff-{round}"));
            create_diff(&vmm, &saved, &alone);
            assert!(fs::metadata(&alone).unwrap().blocks() < fs::metadata(saved.memory()).unwrap().blocks());
            rebase(&merged_elsewhere, &alone);
            fs::copy(&merged_elsewhere, saved.memory()).unwrap();
        }
        create(&vmm, &whole).expect_204();
        assert!(same_contents(&whole.memory(), &saved.memory()), "round {round}");
    }
    drop(vmm);
    // A machine that comes from there tracks what it writes, too.
    let vmm = told.by().start();
    vmm.put(LOAD, &saved.load_with("track_dirty_pages", json!(true))).expect_204();
    told.wait_for_ticks(&vmm, 46);
    set_state(&vmm, "Paused");
    let more = dir.path().join("more");
    create_diff(&vmm, &saved, &more);
    fs::copy(saved.memory(), &merged_elsewhere).unwrap();
    rebase(&merged_elsewhere, &more);
    create(&vmm, &whole).expect_204();
    assert!(same_contents(&whole.memory(), &merged_elsewhere));
    drop(vmm);
    fs::rename(&merged_elsewhere, saved.memory()).unwrap();
    let vmm = restored_by(told.by(), &saved);
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    told.check();
}

/// Nobody was asked to log: what was touched is taken for what was written.
#[test]
fn without_a_log_a_difference_is_what_was_touched() {
    let vmm = configured(&life(3).with("pool_mib", 8));
    vmm.machine(1, 512);
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = Saved { dir: tempfile::tempdir().unwrap() };
    set_state(&vmm, "Paused");
    create_diff(&vmm, &saved, &saved.memory());
    let used = fs::metadata(saved.memory()).unwrap().blocks() * 512;
    assert!((8 << 20..32 << 20).contains(&used), "{used}");
    drop(vmm);
    finish(&restored(&saved));
}

/// As v1's monitor, which ends after a load that failed; under its own name it stays.
#[test]
fn by_the_other_name_a_load_that_fails_is_the_end() {
    let builder = VmmBuilder::new();
    let binary = builder.dir().join("firecracker");
    mayfly_tests::binary::copy(&mayfly_tests::binary::mayfly(), &binary);
    let vmm = builder.binary(binary).start();
    let load = json!({"snapshot_path": "/nowhere/s", "mem_file_path": "/nowhere/m"});
    let reply = vmm.put("/snapshot/load", &load);
    reply.expect_fault("Failed to open snapshot file");
    assert_eq!(reply.header("Deprecation"), Some("true"), "`mem_file_path` is");
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
}

/// R6: the files that a machine came from are its own to replace.
#[test]
fn a_machine_may_be_saved_over_the_files_it_came_from() {
    let told = Told::new();
    let vmm = living(&told, 1_000_000);
    let saved = told.saved_after(vmm, 2);
    let mut vmm = restored_by(told.by(), &saved);
    for round in 1..=5 {
        told.wait_for_ticks(&vmm, 3 * round);
        set_state(&vmm, "Paused");
        create(&vmm, &saved).expect_204();
        if round % 2 == 0 {
            drop(vmm);
            vmm = restored_by(told.by(), &saved);
        } else {
            set_state(&vmm, "Resumed");
        }
    }
    told.wait_for_ticks(&vmm, 20);
    told.check();
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// R1: killed at any moment of a save, the process leaves the snapshot that was there or the one that it was writing.
#[test]
fn a_kill_leaves_a_whole_snapshot() {
    let vmm = configured(&life(3).with("pool_mib", 8));
    let saved = saved_after(vmm, 2);
    for turn in 0..30u64 {
        let vmm = VmmBuilder::new().start();
        vmm.put(LOAD, &saved.load_with("resume_vm", json!(false))).expect_204();
        let body = json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}).to_string();
        let mut client = vmm.client();
        client.send("PUT", "/snapshot/create", Some(&body)).unwrap();
        std::thread::sleep(Duration::from_micros(turn * 700));
        vmm.signal(9);
        let _ = vmm.wait_exit(PATIENCE);
        let known = [".memory.partial", ".state.partial", "memory", "state"];
        assert!(names(saved.dir()).iter().all(|name| known.contains(&name.as_str())), "{:?}", names(saved.dir()));
        let vmm = VmmBuilder::new().start();
        vmm.put(LOAD, &saved.load_with("resume_vm", json!(false))).expect_204();
    }
    // The next one takes over what was left.
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load_with("resume_vm", json!(false))).expect_204();
    create(&vmm, &saved).expect_204();
    assert_eq!(names(saved.dir()), ["memory", "state"]);
    drop(vmm);
    finish(&restored(&saved));
}

/// Killed at any moment of a load, the process leaves the snapshot as it is.
#[test]
fn a_kill_of_a_load_leaves_nothing() {
    let vmm = configured(&life(3).with("pool_mib", 8));
    let saved = saved_after(vmm, 2);
    let before = [fs::read(saved.state()).unwrap(), fs::read(saved.memory()).unwrap()];
    for turn in 0..30u64 {
        let vmm = VmmBuilder::new().start();
        let mut client = vmm.client();
        client.send("PUT", LOAD, Some(&saved.load().to_string())).unwrap();
        std::thread::sleep(Duration::from_micros(turn * 120));
        vmm.signal(9);
        let _ = vmm.wait_exit(PATIENCE);
        assert_eq!(names(saved.dir()), ["memory", "state"]);
    }
    assert!([fs::read(saved.state()).unwrap(), fs::read(saved.memory()).unwrap()] == before);
    finish(&restored(&saved));
}

/// A file system with room for so much, as long as it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn new(mib: u32) -> Self {
        mayfly_tests::binary::require_root();
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status().unwrap();
        assert!(mounted.success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// R2: a full disk, and a limit on files, cost the snapshot and nothing else.
#[test]
fn no_room_is_an_error_and_the_machine_goes_on() {
    let told = Told::new();
    let vmm = configured_with(told.by(), guest::ELF, &life(1_000_000).with("pool_mib", 16));
    vmm.instance_start();
    told.wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let (state, memory) = (fs::read(saved.state()).unwrap(), fs::read(saved.memory()).unwrap());
    let small = Small::new(4);
    let elsewhere = |name: &str| small.0.path().join(name);
    let no_memory = json!({"snapshot_path": saved.state(), "mem_file_path": elsewhere("memory")});
    vmm.put("/snapshot/create", &no_memory).expect_fault("No space left on device");
    assert_eq!(names(small.0.path()), [""; 0]);
    fs::write(elsewhere("filler"), vec![1; 5 << 20]).unwrap_err();
    let no_state = json!({"snapshot_path": elsewhere("state"), "mem_file_path": saved.memory()});
    vmm.put("/snapshot/create", &no_state).expect_fault("No space left on device");
    let nowhere = json!({"snapshot_path": "/nowhere/state", "mem_file_path": saved.memory()});
    vmm.put("/snapshot/create", &nowhere).expect_fault("Cannot write snapshot file");
    let folder = json!({"snapshot_path": saved.state(), "mem_file_path": small.0.path()});
    vmm.put("/snapshot/create", &folder).expect_fault("it exists and is no file");
    let limit = |bytes: &str| {
        let pid = vmm.pid().to_string();
        assert!(Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status().unwrap().success());
    };
    limit("1000000:");
    create(&vmm, &saved).expect_fault("File too large");
    limit("unlimited:");
    // What was there is there, and nothing else.
    assert_eq!(names(saved.dir()), ["memory", "state"]);
    assert!(fs::read(saved.state()).unwrap() == state && fs::read(saved.memory()).unwrap() == memory);
    set_state(&vmm, "Resumed");
    let ticks = ticks(&told.text()).len();
    told.wait_for_ticks(&vmm, ticks + 3);
    set_state(&vmm, "Paused");
    create(&vmm, &saved).expect_204();
    drop(vmm);
    let vmm = restored_by(told.by(), &saved);
    told.wait_for_ticks(&vmm, ticks + 8);
    told.check();
}

/// The guest's clock may go on from the time of day. (That it does Linux guests would notice; here it is that KVM takes it.)
#[test]
fn the_clock_may_follow_the_time_of_day() {
    let vmm = configured(&life(2));
    let saved = saved_after(vmm, 2);
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load_with("clock_realtime", json!(true))).expect_204();
    finish(&vmm);
}

/// S3: whoever cuts the memory file of a living machine ends it, and it says why.
#[test]
fn a_memory_file_that_becomes_shorter_ends_the_machine() {
    let vmm = configured(&life(1_000_000).with("pool_mib", 8));
    let saved = saved_after(vmm, 2);
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load_with("resume_vm", json!(false))).expect_204();
    // What the guest runs with, its page tables among it, lies below.
    fs::File::options().write(true).open(saved.memory()).unwrap().set_len(18 << 20).unwrap();
    set_state(&vmm, "Resumed");
    // The guest's doing: 1; ours: 149, SIGBUS.
    let code = vmm.wait_exit(PATIENCE);
    assert!(matches!(code, 1 | 149), "{code}\n{}", vmm.said());
    assert!(vmm.log().contains("became shorter") || vmm.log().contains("signal 7"), "{}", vmm.log());
}

/// Every clone with its own disk, tap, addresses and console, from the same files.
#[test]
fn what_a_machine_finds_on_its_host_may_be_another() {
    const MAC: &str = "06:00:ac:10:00:63";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let pmem = Disk::sparse(dir.path(), "pmem", 2 << 20).unwrap();
    let tap = network("mfsnap");
    let other_tap = Tap::create("mfother").unwrap();
    other_tap.up().unwrap();
    let told = Told::new();
    let vmm = living(&told, 10);
    vmm.drive("d", disk.path(), "Async");
    attach(&vmm, &tap);
    vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": pmem.path()})).expect_204();
    vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": at("v.sock")})).expect_204();
    vmm.put("/mmds/config", &json!({"version": "V2", "network_interfaces": ["eth0"]})).expect_204();
    vmm.put("/mmds", &json!({"who": "parent"})).expect_204();
    let saved = told.saved_after(vmm, 5);
    // Killed, it could not remove it.
    fs::remove_file(at("v.sock")).unwrap();
    let before = fs::read(disk.path()).unwrap();
    fs::write(at("disk2"), &before).unwrap();
    fs::File::options().write(true).open(at("disk2")).unwrap().set_len(2 << 20).unwrap();
    fs::copy(pmem.path(), at("pmem2")).unwrap();

    let told = Told::new();
    let vmm = told.by().args(["--mmds-size-limit", "1000"]).start();
    vmm.put("/mmds", &json!({"who": "the process"})).expect_204();
    let restore = |key: &str, value: Value| vmm.put(RESTORE, &saved.load_with(key, value));
    let refused = |key: &str, value: Value, text: &str| {
        restore(key, value).expect_fault(text);
        assert_eq!(vmm.get("/").json()["state"], "Not started");
        assert_eq!(vmm.get("/mmds").json(), json!({"who": "the process"}));
    };
    refused("drives", json!([{"drive_id": "e", "path_on_host": at("disk2")}]), "Unknown Drive: the snapshot has no e");
    refused("drives", json!([{"drive_id": "d", "path_on_host": at("nowhere")}]), "No such file");
    refused("drives", json!([{"drive_id": "d"}]), "missing field `path_on_host`");
    refused("pmem", json!([{"id": "q", "path_on_host": at("pmem2")}]), "Unknown Pmem Device: the snapshot has no q");
    refused("network_interfaces", json!([{"iface_id": "eth1"}]), "Unknown Network Device: the snapshot has no eth1");
    refused("network_interfaces", json!([{"iface_id": "eth0", "guest_mac": "here"}]), "invalid MAC address `here`");
    refused("vsock", json!({"guest_cid": 2}), "guest_cid");
    refused("serial", json!({"serial_out_path": "/nowhere/at/all"}), "serial_out_path /nowhere/at/all");
    refused("mmds", json!({"who": "x".repeat(1000)}), "doesn't fit");
    refused("mem_backend", json!(null), "expected an object");
    refused("network_overrides", json!([]), "unknown field `network_overrides`");
    let longer = Disk::sparse(dir.path(), "longer", 4 << 20).unwrap();
    let all = json!({
        "snapshot_path": saved.state(), "mem_backend": saved.load()["mem_backend"], "resume_vm": true,
        "drives": [{"drive_id": "d", "path_on_host": at("disk2")}],
        "pmem": [{"id": "p", "path_on_host": longer.path()}],
        "network_interfaces": [{"iface_id": "eth0", "host_dev_name": other_tap.name(), "guest_mac": MAC}],
        "vsock": {"guest_cid": 99, "uds_path": at("v2.sock")},
        "serial": {"serial_out_path": at("console")},
        "mmds": {"who": "child"},
    });
    // The last thing that can go wrong does: all that was told before is forgotten.
    vmm.put(RESTORE, &all).expect_fault("give it a file of the size it had");
    assert_eq!(vmm.get("/mmds").json(), json!({"who": "the process"}));
    let mut all = all;
    all["pmem"][0]["path_on_host"] = json!(at("pmem2"));
    let frames = other_tap.packets().unwrap();
    vmm.put(RESTORE, &all).expect_204();
    let config = vmm.get("/vm/config").json();
    assert_eq!(config["drives"][0]["path_on_host"], json!(at("disk2")));
    assert_eq!(config["pmem"][0]["path_on_host"], json!(at("pmem2")));
    let net = &config["network-interfaces"][0];
    assert_eq!((&net["host_dev_name"], &net["guest_mac"]), (&json!(other_tap.name()), &json!(MAC)));
    assert_eq!(config["vsock"], json!({"guest_cid": 99, "uds_path": at("v2.sock")}));
    assert_eq!(vmm.get("/mmds").json(), json!({"who": "child"}));
    assert!(frames.receive(PATIENCE).unwrap().is_some());
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    let console = fs::read_to_string(at("console")).unwrap();
    assert!(console.contains("life=over") && !console.contains("changed=1"), "{console}");
    assert_eq!(told.text(), "", "the console is another one");
    assert!(fs::read(disk.path()).unwrap() == before, "the parent's disk is as it was");
    assert!(fs::read(at("disk2")).unwrap()[..before.len()] != before[..]);
}

/// Runs `mayfly snapshot` and returns what it says and its exit code.
fn look(args: &[&std::ffi::OsStr]) -> (String, i32) {
    let output = Command::new(mayfly_tests::binary::mayfly()).arg("snapshot").args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code().unwrap())
}

#[test]
fn a_snapshot_is_described_and_verified_without_loading_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let vmm = configured(&life(3));
    vmm.drive("d", disk.path(), "Sync");
    vmm.put("/balloon", &json!({"amount_mib": 0, "deflate_on_oom": false})).expect_204();
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let config = vmm.get("/vm/config").json();
    drop(vmm);
    let (state, memory) = (saved.state(), saved.memory());
    let state_name = state.as_os_str();
    let (said, code) = look(&["describe".as_ref(), state_name]);
    assert_eq!(code, 0, "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["version"], &said["fits_this_host"]), (&json!("v1.0.0"), &json!(true)));
    assert_eq!(said["memory_file_bytes"], json!(fs::metadata(&memory).unwrap().len()));
    assert_eq!(said["config"], config);
    let driver = |name: &str| {
        let devices = said["devices"].as_array().unwrap();
        devices.iter().find(|device| device["name"].as_str().unwrap().contains(name)).unwrap()["driver"].clone()
    };
    assert_eq!((driver("drive"), driver("balloon")), (json!("at work"), json!("none")));
    assert_eq!(said["sections"].as_array().unwrap().len(), if on_pci() { 7 } else { 6 });

    let verify = |state: &Path, memory: &Path| {
        look(&["verify".as_ref(), state.as_os_str(), "--memory".as_ref(), memory.as_os_str()])
    };
    let (said, code) = verify(&state, &memory);
    assert!(code == 0 && said.contains("fit this host") && said.contains("pages that were compared"), "{said}");
    let other = saved.dir.path().join("other");
    fs::File::create(&other).unwrap().set_len(fs::metadata(&memory).unwrap().len()).unwrap();
    let (said, code) = verify(&state, &other);
    assert!(code == 1 && said.contains("not of the same snapshot"), "{said}");
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&other, bytes).unwrap();
    for (said, code) in [verify(&other, &memory), look(&["describe".as_ref(), other.as_os_str()])] {
        assert!(code == 1 && said.contains("CRC does not match"), "{said}");
    }
    let (said, code) = look(&["describe".as_ref(), "/nowhere/at/all".as_ref()]);
    assert!(code == 1 && said.contains("error: /nowhere/at/all: "), "{said}");
    assert_eq!(look(&[]).1, 153);
}

#[test]
fn a_snapshot_that_is_being_written_can_be_looked_at_and_given_up() {
    const NONE: &str = "No snapshot is being written.";
    let vmm = configured(&life(1_000_000).with("pool_mib", 256));
    vmm.machine(1, 512);
    vmm.instance_start();
    vmm.wait_for_line("life=started", PATIENCE);
    let saved = Saved { dir: tempfile::tempdir().unwrap() };
    set_state(&vmm, "Paused");
    assert_eq!(
        vmm.get("/snapshot/progress").json(),
        json!({"writing": false, "bytes_done": null, "bytes_total": null})
    );
    vmm.request("DELETE", "/snapshot/progress", None).expect_fault(NONE);
    let body = json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}).to_string();
    let mut client = vmm.client();
    client.send("PUT", "/snapshot/create", Some(&body)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let seen = loop {
        let seen = vmm.get("/snapshot/progress").json();
        if seen["bytes_done"].as_u64().is_some_and(|done| done > 0) {
            break seen;
        }
        assert!(Instant::now() < deadline, "{seen}");
    };
    assert_eq!((&seen["writing"], &seen["bytes_total"]), (&json!(true), &json!(512 << 20)));
    vmm.request("DELETE", "/snapshot/progress", None).expect_204();
    client.read_response().unwrap().expect_fault("it was cancelled");
    assert_eq!(names(saved.dir()), [""; 0]);
    vmm.request("DELETE", "/snapshot/progress", None).expect_fault(NONE);
    set_state(&vmm, "Resumed");
    let before = ticks(&vmm.console().text()).len();
    wait_for_ticks(&vmm, before + 2);
    // The end of the process gives it up as well.
    set_state(&vmm, "Paused");
    client.send("PUT", "/snapshot/create", Some(&body)).unwrap();
    while vmm.get("/snapshot/progress").json()["writing"] != json!(true) {}
    vmm.signal(15);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
    assert_eq!(names(saved.dir()), [""; 0]);
}
