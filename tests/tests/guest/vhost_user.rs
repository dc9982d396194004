//! Devices that other processes serve: QEMU's storage daemon behind a drive, virtiofsd behind a file system.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Block, BlockOp, End, Job, Mode, Transfer, Workload, pattern};
use mayfly_tests::backend::Backend;
use mayfly_tests::{Disk, PATIENCE, Vmm, VmmBuilder};
use serde_json::{Value, json};

use super::snapshots::HugePages;
use super::{configured, configured_with, finish, flush_metrics, measured, number, run};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// A directory with a disk in it, and where its backend listens.
struct Host {
    dir: tempfile::TempDir,
    disk: Disk,
    socket: PathBuf,
}

impl Host {
    fn new(len_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::sparse(dir.path(), "disk", len_bytes).unwrap();
        let socket = dir.path().join("backend.sock");
        Self { dir, disk, socket }
    }

    #[track_caller]
    fn serve(&self) -> Backend {
        Backend::storage(self.disk.path(), &self.socket, true)
    }

    /// A machine with the backend's drive, in which `job` has begun.
    #[track_caller]
    fn used_by(&self, job: &Job) -> Vmm {
        let vmm = configured(job);
        vmm.put("/drives/d", &drive(&self.socket)).expect_204();
        vmm.instance_start();
        vmm
    }
}

fn drive(socket: &Path) -> Value {
    json!({"drive_id": "d", "is_root_device": false, "socket": socket})
}

fn expected(seed: u64, first: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    for (sector, chunk) in (first..).zip(bytes.chunks_exact_mut(SECTOR as usize)) {
        pattern::fill(seed, sector, chunk);
    }
    bytes
}

fn written(sectors: u64, transfer: Transfer) -> Job {
    Job::new(Mode::Block(Block { sector: 100, sectors, seed: 7, transfer, ..Block::new(BlockOp::Write) }))
}

#[track_caller]
fn wait_until(what: &str, vmm: &Vmm, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come about: {}", vmm.said());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_the_guest_writes_is_in_the_backends_file_and_the_other_way_round() {
    let shapes = [(1, false, false), (7, false, true), (32, true, false), (5, true, true)];
    for (chain, indirect, event_idx) in shapes {
        let host = Host::new(4 * MIB);
        let backend = host.serve();
        let vmm = configured(&written(3000, Transfer { request_sectors: 64, chain, indirect, event_idx }));
        vmm.put("/drives/d", &drive(&host.socket)).expect_204();
        let config = vmm.get("/vm/config").expect_200();
        let echo = json!({
            "drive_id": "d", "partuuid": null, "is_root_device": false, "cache_type": "Unsafe", "is_read_only": null,
            "path_on_host": null, "rate_limiter": null, "io_engine": null, "socket": host.socket,
        });
        assert_eq!(config["drives"], json!([echo]));
        let report = run(&vmm);
        assert_eq!(number(&report, "errors"), 0, "{report:?}");
        assert_eq!(number(&report, "capacity"), 4 * MIB / SECTOR);
        assert!(host.disk.read(100 * SECTOR, (3000 * SECTOR) as usize).unwrap() == expected(7, 100, 3000));

        backend.kill();
        let _backend = host.serve();
        let job = Job::new(Mode::Block(Block { sector: 100, sectors: 3000, seed: 7, ..Block::new(BlockOp::Verify) }));
        let vmm = configured(&job);
        vmm.put("/drives/d", &drive(&host.socket)).expect_204();
        let report = run(&vmm);
        assert_eq!((number(&report, "errors"), number(&report, "mismatches")), (0, 0), "{report:?}");
    }
}

#[test]
fn huge_pages_are_shared_too() {
    let _pages = HugePages::reserve(40);
    let host = Host::new(4 * MIB);
    let _backend = host.serve();
    let vmm = configured(&written(3000, Transfer { request_sectors: 64, ..Transfer::default() }));
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"})).expect_204();
    vmm.put("/drives/d", &drive(&host.socket)).expect_204();
    assert_eq!(number(&run(&vmm), "errors"), 0);
    assert!(host.disk.read(100 * SECTOR, (3000 * SECTOR) as usize).unwrap() == expected(7, 100, 3000));
}

/// FLUSH is offered as for files, and a read-only export is read-only.
#[test]
fn features_are_the_backends_but_for_the_cache() {
    const RO: u64 = 1 << 5;
    const FLUSH: u64 = 1 << 9;
    let features = |writable, cache| {
        let host = Host::new(MIB);
        let _backend = Backend::storage(host.disk.path(), &host.socket, writable);
        let vmm = configured(&Job::new(Mode::Block(Block::new(BlockOp::Read))));
        let mut body = drive(&host.socket);
        body["cache_type"] = json!(cache);
        vmm.put("/drives/d", &body).expect_204();
        number(&run(&vmm), "features") & (RO | FLUSH)
    };
    assert_eq!(features(true, "Unsafe"), 0);
    assert_eq!(features(true, "Writeback"), FLUSH);
    assert_eq!(features(false, "Writeback"), FLUSH | RO);
}

#[test]
fn a_backend_that_is_killed_and_comes_back_costs_time_and_nothing_else() {
    const SECTORS: u64 = 120_000;
    let host = Host::new(64 * MIB);
    let mut backend = host.serve();
    let vmm = configured(&written(SECTORS, Transfer::default()));
    let metrics = measured(&vmm);
    vmm.put("/drives/d", &drive(&host.socket)).expect_204();
    vmm.instance_start();
    // Each time when another part of the disk is being written.
    for part in 1..4 {
        let sector = 100 + SECTORS * part / 5;
        wait_until("a write", &vmm, || host.disk.read(sector * SECTOR, 8).unwrap() != [0; 8]);
        backend.kill();
        vmm.get("/").expect_200();
        backend = host.serve();
    }
    flush_metrics(&vmm);
    let report = finish(&vmm);
    assert_eq!((number(&report, "errors"), number(&report, "requests")), (0, SECTORS / 8), "{report:?}");
    assert!(host.disk.read(100 * SECTOR, (SECTORS * SECTOR) as usize).unwrap() == expected(7, 100, SECTORS));
    let lines = std::fs::read_to_string(metrics).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let group = last["vhost_user_block_d"].as_object().unwrap();
    let names: Vec<&str> = group.keys().map(String::as_str).collect();
    let contract = ["activate_fails", "activate_time_us", "cfg_fails", "config_change_time_us", "init_time_us"];
    assert_eq!(names, contract);
    assert!(group["init_time_us"].as_u64().unwrap() > 0);
}

/// With many writes in flight, which the storage daemon answers out of order and does not keep track of: that they are lost is told, and no
/// request is answered that was not done, or twice.
#[test]
fn a_backend_that_is_killed_with_much_in_flight_tells_nothing_wrong() {
    let host = Host::new(64 * MIB);
    let backend = host.serve();
    let load = Workload {
        write: true,
        random: true,
        block_bytes: 4096,
        depth: 64,
        ops: 200_000,
        drive: 0,
        transfer: Transfer { indirect: true, ..Transfer::default() },
    };
    let vmm = host.used_by(&Job::new(Mode::BenchBlock(load)));
    let blocks = || std::fs::metadata(host.disk.path()).unwrap().blocks();
    wait_until("many writes", &vmm, || blocks() > 4096);
    backend.kill();
    let _backend = host.serve();
    let report = finish(&vmm);
    assert_eq!(number(&report, "errors"), 0, "{report:?}");
    let reset = vmm.log().contains("keeps no track of them");
    assert_eq!(number(&report, "stalled"), u64::from(reset), "{report:?} {}", vmm.said());
}

/// Reads with many in flight, interrupted by pauses, at each of which the backend puts them down.
#[test]
fn pauses_lose_no_request() {
    let host = Host::new(16 * MIB);
    let _backend = host.serve();
    let load = Workload {
        write: false,
        random: true,
        block_bytes: 4096,
        depth: 64,
        ops: 150_000,
        drive: 0,
        transfer: Transfer { event_idx: true, indirect: true, ..Transfer::default() },
    };
    let vmm = host.used_by(&Job::new(Mode::BenchBlock(load)));
    for _ in 0..100 {
        vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
        vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    }
    let report = finish(&vmm);
    assert_eq!((number(&report, "completed"), number(&report, "errors")), (150_000, 0), "{report:?} {}", vmm.said());
}

#[test]
fn a_backend_that_grew_announces_its_capacity() {
    let host = Host::new(MIB);
    let backend = host.serve();
    let vmm = host.used_by(&Job::new(Mode::Watch));
    vmm.wait_for_line("watch=started", PATIENCE);
    vmm.patch("/drives/d", &json!({"drive_id": "d"})).expect_204();
    let expected = "Running method expected different backend.";
    for body in [
        json!({"drive_id": "d", "path_on_host": host.disk.path()}),
        json!({"drive_id": "d", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}),
    ] {
        vmm.patch("/drives/d", &body).expect_fault(expected);
    }
    backend.kill();
    std::fs::File::options().write(true).open(host.disk.path()).unwrap().set_len(2 * MIB).unwrap();
    let _backend = host.serve();
    let report = finish(&vmm);
    assert_eq!((number(&report, "capacity"), number(&report, "new_capacity")), (MIB / SECTOR, 2 * MIB / SECTOR));
    assert_eq!(number(&report, "last"), 0, "{report:?}");
}

/// One that neither answers nor goes.
#[test]
fn a_backend_that_hangs_keeps_only_its_drive_waiting() {
    let host = Host::new(64 * MIB);
    let backend = host.serve();
    let vmm = host.used_by(&written(120_000, Transfer::default()).end(End::Spin));
    wait_until("a write", &vmm, || host.disk.read(1000 * SECTOR, 8).unwrap() != [0; 8]);
    backend.freeze();
    vmm.patch("/drives/d", &json!({"drive_id": "d"})).expect_fault("it did not answer within");
    let mut pausing = vmm.client();
    pausing.send("PATCH", "/vm", Some(r#"{"state": "Paused"}"#)).unwrap();
    for _ in 0..20 {
        vmm.get("/").expect_200();
    }
    pausing.read_response().unwrap().expect_204();
    vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(Duration::from_secs(5)), 128 + libc::SIGTERM, "{}", vmm.said());
}

fn fs(socket: &Path, tag: &str) -> Value {
    json!({"fs_id": "share", "tag": tag, "socket": socket})
}

#[test]
fn the_guest_reads_a_file_of_the_host() {
    let host = Host::new(MIB);
    let share = host.dir.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let data = expected(11, 0, 777);
    std::fs::write(share.join("file"), &data).unwrap();
    let _backend = Backend::directory(&share, &host.socket);
    let vmm = configured(&Job::new(Mode::Fs { name: "file".to_owned() }));
    vmm.put("/fs/share", &fs(&host.socket, "shared")).expect_204();
    let config = vmm.get("/vm/config").expect_200();
    let mut echo = fs(&host.socket, "shared");
    echo["num_queues"] = json!(1);
    echo["queue_size"] = json!(256);
    assert_eq!(config["fs"], json!([echo]));
    let report = run(&vmm);
    assert_eq!((report.get("tag"), number(&report, "queues")), (Some("shared"), 1), "{report:?}");
    assert_eq!(number(&report, "read"), data.len() as u64, "{report:?}");
    assert_eq!(number(&report, "checksum"), pattern::checksum(pattern::CHECKSUM_START, &data));
}

#[test]
fn a_configuration_file_names_backends_as_it_is_shown() {
    mayfly_tests::binary::require_kvm();
    let host = Host::new(MIB);
    let share = Host::new(MIB);
    let _disk = host.serve();
    let _directory = Backend::directory(share.dir.path(), &share.socket);
    let builder = VmmBuilder::new();
    let kernel = builder.file("guest.elf", guest::ELF);
    let mut served = drive(&host.socket);
    let mut shared = fs(&share.socket, "shared");
    for (key, value) in [("num_queues", 1), ("queue_size", 1024)] {
        shared[key] = json!(value);
    }
    let document = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": Job::new(Mode::Spin).command_line()},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
        "drives": [served], "fs": [shared],
    });
    let vmm = builder.config_file(&document).start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let shown = vmm.get("/vm/config").expect_200();
    assert_eq!(shown["fs"], json!([shared]));
    for key in ["partuuid", "is_read_only", "path_on_host", "rate_limiter", "io_engine"] {
        served[key] = Value::Null;
    }
    served["cache_type"] = json!("Unsafe");
    assert_eq!(shown["drives"], json!([served]));
}

/// Of a backend that serves one connection only, and of one that has gone meanwhile.
#[test]
fn a_device_may_be_put_again() {
    let host = Host::new(MIB);
    let backend = host.serve();
    let vmm = configured(&Job::new(Mode::Block(Block::new(BlockOp::Read))));
    for cache in ["Unsafe", "Writeback", "Unsafe"] {
        let mut body = drive(&host.socket);
        body["cache_type"] = json!(cache);
        vmm.put("/drives/d", &body).expect_204();
    }
    backend.kill();
    let backend = host.serve();
    vmm.put("/drives/d", &drive(&host.socket)).expect_204();
    // One that is another one at the start than when it was met.
    backend.kill();
    let _backend = host.serve();
    assert_eq!(number(&run(&vmm), "errors"), 0);
}

/// Tags are what guests find them by.
#[test]
fn two_file_systems_have_two_tags() {
    let [one, two] = [Host::new(MIB), Host::new(MIB)];
    let _backends = [&one, &two].map(|host| Backend::directory(host.dir.path(), &host.socket));
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.put("/fs/share", &fs(&one.socket, "shared")).expect_204();
    let mut other = fs(&two.socket, "shared");
    other["fs_id"] = json!("other");
    let text = vmm.put("/fs/other", &other).expect_fault("");
    assert_eq!(text, "File system config error: tag shared is that of share: choose another one.");
    other["tag"] = json!("other");
    vmm.put("/fs/other", &other).expect_204();
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    let paths = json!({"snapshot_path": vmm.dir().join("s"), "mem_file_path": vmm.dir().join("m")});
    let whole = "are present: vhost-user-fs(id: share), vhost-user-fs(id: other)";
    vmm.put("/snapshot/create", &paths).expect_fault(whole);
}

/// One that is silent from the beginning: the request says so, and others are served meanwhile.
#[test]
fn a_silent_backend_is_refused_by_the_request_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let vmm = configured(&Job::new(Mode::Spin));
    let mut patient = vmm.client();
    patient.send("PUT", "/drives/d", Some(&drive(&socket).to_string())).unwrap();
    for _ in 0..20 {
        vmm.get("/").expect_200();
    }
    let text = patient.read_response().unwrap().expect_fault("");
    let prefix = "Drive config error: Unable to create the virtio block device: Vhost-user backend error: socket ";
    assert!(text.starts_with(prefix) && text.ends_with("it did not answer within 5000 ms"), "{text}");
    assert_eq!(vmm.get("/vm/config").expect_200()["drives"], json!([]));
    let nobody = vmm.put("/drives/d", &drive(&dir.path().join("nobody"))).expect_fault("");
    assert!(nobody.ends_with("No such file or directory (os error 2)"), "{nobody}");
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 128 + libc::SIGTERM);
}

#[test]
fn machines_with_such_a_device_are_neither_saved_nor_cloned_nor_mixed_with_memory_of_other_kinds() {
    let host = Host::new(MIB);
    let backend = host.serve();
    let vmm = configured_with(VmmBuilder::new().arg("--clonable"), guest::ELF, &Job::new(Mode::Spin));
    vmm.put("/drives/d", &drive(&host.socket)).expect_204();
    let pmem = host.dir.path().join("pmem");
    std::fs::write(&pmem, [0; 4096]).unwrap();
    vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": pmem})).expect_204();
    let text = vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault("");
    assert!(text.contains("pmem cannot be shared with the backends of vhost-user-block(id: d)"), "{text}");

    drop(vmm);
    backend.kill();
    let _backend = host.serve();
    let vmm = configured_with(VmmBuilder::new().arg("--clonable"), guest::ELF, &Job::new(Mode::Spin));
    vmm.put("/drives/d", &drive(&host.socket)).expect_204();
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    let paths = json!({"snapshot_path": vmm.dir().join("s"), "mem_file_path": vmm.dir().join("m")});
    let whole = "Devices without snapshot support are present: vhost-user-block(id: d)";
    let text = vmm.put("/snapshot/create", &paths).expect_fault("");
    assert_eq!(text, format!("Create snapshot error: {whole}"));
    let clones = json!({"children": [{"socket": vmm.dir().join("c")}]});
    let text = vmm.request("POST", "/clones", Some(&clones.to_string())).expect_fault("");
    assert!(text.contains(whole), "{text}");
}
