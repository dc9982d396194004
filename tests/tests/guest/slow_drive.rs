//! A drive whose host file does not answer keeps itself waiting, and nobody else.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use guest::{Job, Mode, Net, Transfer, Workload};
use mayfly_tests::{Disk, PATIENCE, SlowDisk, Vmm, uninterrupted};
use serde_json::json;

use super::network::{attach, network};
use super::{configured, finish, number};

#[test]
fn a_drive_that_hangs_delays_nobody() {
    let tap = network("mfslow");
    let ip = Ipv4Addr::new(172, 16, 0, 2);
    let host = Command::new("ip").args(["addr", "add", "172.16.0.1/24", "dev", tap.name()]).status().unwrap();
    assert!(host.success());
    let job = Job::new(Mode::Net(Net { ip, packets: None, limit_ms: 60_000 })).with("reading", 1);
    let vmm = configured(&job);
    let mountpoint = vmm.dir().join("fuse");
    std::fs::create_dir(&mountpoint).unwrap();
    let disk = SlowDisk::mount(&mountpoint, 1 << 20).unwrap();
    let drive = json!({"drive_id": "slow", "path_on_host": disk.path(), "is_root_device": false, "is_read_only": true});
    vmm.put("/drives/slow", &drive).expect_204();
    attach(&vmm, &tap);
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    assert!(disk.wait_for_read(PATIENCE), "{}", vmm.said());

    // From here to `release` the drive's thread hangs in a read.
    let socket = UdpSocket::bind("172.16.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let echo = |text: &[u8]| {
        socket.send_to(text, (ip, 7)).unwrap();
        let mut back = [0; 64];
        let (n, _) = uninterrupted(|| socket.recv_from(&mut back)).unwrap_or_else(|e| panic!("{e}\n{}", vmm.said()));
        assert_eq!(&back[..n], text);
    };
    for n in 0..20 {
        echo(format!("while it hangs {n}").as_bytes());
        vmm.get("/").expect_200();
    }

    // A limiter is changed at once, too.
    let limiter = json!({"ops": {"size": 1000, "refill_time": 1000}});
    vmm.patch("/drives/slow", &json!({"drive_id": "slow", "rate_limiter": limiter})).expect_204();

    // Even a request to the drive itself keeps only its own caller waiting.
    let path = vmm.file("other.img", &[7; 1 << 16]);
    let mut patient = vmm.client();
    let body = json!({"drive_id": "slow", "path_on_host": path}).to_string();
    patient.send("PATCH", "/drives/slow", Some(&body)).unwrap();
    for n in 0..20 {
        echo(format!("while a request waits {n}").as_bytes());
        vmm.get("/").expect_200();
    }
    assert!(!vmm.console().text().contains("read=done"), "the read was to hang meanwhile");

    // To pause is to finish what was begun, so that waits too, and so does whoever resumes after it; looking does not.
    let mut pausing = vmm.client();
    pausing.send("PATCH", "/vm", Some(r#"{"state": "Paused"}"#)).unwrap();
    for _ in 0..20 {
        assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    }
    let mut resuming = vmm.client();
    resuming.send("PATCH", "/vm", Some(r#"{"state": "Resumed"}"#)).unwrap();
    vmm.get("/").expect_200();
    assert!(!vmm.console().text().contains("read=done"), "the read was to hang meanwhile");

    disk.release();
    patient.read_response().unwrap().expect_204();
    pausing.read_response().unwrap().expect_204();
    resuming.read_response().unwrap().expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    vmm.wait_for_line("read=done", PATIENCE);
    let config = vmm.get("/vm/config").expect_200();
    assert_eq!(config["drives"][0]["path_on_host"], json!(path));
    socket.send_to(b"stop", (ip, 9)).unwrap();
    finish(&vmm);
}

const READS: u64 = 5000;

/// A guest with 256 reads in flight by io_uring, all of which wait for the host's file.
#[track_caller]
fn hanging() -> (Vmm, SlowDisk) {
    let load = Workload {
        write: false,
        random: true,
        block_bytes: 4096,
        depth: 256,
        ops: READS,
        drive: 0,
        transfer: Transfer { indirect: true, ..Transfer::default() },
    };
    let vmm = configured(&Job::new(Mode::BenchBlock(load)));
    let mountpoint = vmm.dir().join("fuse");
    std::fs::create_dir(&mountpoint).unwrap();
    let disk = SlowDisk::mount(&mountpoint, 4 << 20).unwrap();
    let drive = json!({
        "drive_id": "slow", "path_on_host": disk.path(), "is_root_device": false, "is_read_only": true,
        "io_engine": "Async",
    });
    vmm.put("/drives/slow", &drive).expect_204();
    vmm.instance_start();
    assert!(disk.wait_for_read(PATIENCE), "{}", vmm.said());
    (vmm, disk)
}

/// Every read was answered, and none with an error.
#[track_caller]
fn all_answered(vmm: &Vmm) {
    let report = finish(vmm);
    let facts = ["completed", "errors", "stalled"].map(|key| number(&report, key));
    assert_eq!(facts, [READS, 0, 0], "{report:?}");
}

/// G11: the file is swapped under reads in flight: they end with what the old one has, the rest with the new one.
#[test]
fn g11_a_file_is_swapped_under_reads_in_flight() {
    let (vmm, disk) = hanging();
    let dir = tempfile::tempdir().unwrap();
    let other = Disk::patterned(dir.path(), "other", 4 << 20, 5).unwrap();
    let mut patient = vmm.client();
    let body = json!({"drive_id": "slow", "path_on_host": other.path()}).to_string();
    patient.send("PATCH", "/drives/slow", Some(&body)).unwrap();
    for _ in 0..20 {
        vmm.get("/").expect_200();
    }
    disk.release();
    patient.read_response().unwrap().expect_204();
    all_answered(&vmm);
}

/// G11: a pause waits for reads in flight, and loses none.
#[test]
fn g11_a_pause_with_reads_in_flight() {
    let (vmm, disk) = hanging();
    let mut pausing = vmm.client();
    pausing.send("PATCH", "/vm", Some(r#"{"state": "Paused"}"#)).unwrap();
    for _ in 0..20 {
        assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    }
    disk.release();
    pausing.read_response().unwrap().expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Paused");
    vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    all_answered(&vmm);
}

/// G11: the process ends with reads in flight, whether it is asked to or killed.
#[test]
fn g11_the_end_with_reads_in_flight() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGKILL, 137)] {
        let (vmm, disk) = hanging();
        vmm.signal(signal);
        if signal == libc::SIGTERM {
            // In good order is with what is in flight done. A file that never answers takes SIGKILL.
            disk.release();
        }
        assert_eq!(vmm.wait_exit(PATIENCE), code, "{}", vmm.said());
    }
}
