//! A drive whose host file does not answer keeps itself waiting, and nobody else.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use guest::{Job, Mode, Net};
use mayfly_tests::{PATIENCE, SlowDisk};
use serde_json::json;

use super::network::{attach, network};
use super::{configured, finish};

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
        let (n, _) = socket.recv_from(&mut back).unwrap_or_else(|e| panic!("{e}\n{}", vmm.said()));
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
