//! How long the API, the network and sockets take while a drive's host file does not answer at all.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::SlowDisk;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{PATIENCE, Rig, Subject};
use super::net::TAP;
use super::vsock::Served;
use super::{Scenario, typical_and_worst, us};

static GET_P50: Metric = Metric::lower("GET / beside a hanging drive, p50", "µs");
static GET_P99: Metric = Metric::lower("GET / beside a hanging drive, p99", "µs");
static ECHO_P50: Metric = Metric::lower("UDP echo beside a hanging drive, p50", "µs");
static ECHO_P99: Metric = Metric::lower("UDP echo beside a hanging drive, p99", "µs");
static VSOCK_P50: Metric = Metric::lower("vsock echo beside a hanging drive, p50", "µs");
static VSOCK_P99: Metric = Metric::lower("vsock echo beside a hanging drive, p99", "µs");

pub(crate) const SLOW_DRIVE: Scenario = Scenario {
    name: "slow-drive",
    metrics: &[&GET_P50, &GET_P99, &ECHO_P50, &ECHO_P99, &VSOCK_P50, &VSOCK_P99],
    rounds: Rounds { wanted: 6, warm_up: 1 },
    sample: slow_drive,
    needs_network: true,
};

fn slow_drive(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let count = if rig.quick { 50 } else { 500 };
    let (_mountpoint, disk) = hanging(rig)?;
    // Succeeds once per network; later it is there already.
    let _ = Command::new("ip").args(["addr", "add", "172.16.0.1/24", "dev", TAP]).output();

    let mut vm = subject.spawn_configured(rig, "mayfly.mode=net mayfly.ip=172.16.0.2 mayfly.reading=1")?;
    let interface = json!({"iface_id": "eth0", "host_dev_name": TAP, "guest_mac": "02:00:00:00:00:02"});
    vm.put("/network-interfaces/eth0", &interface)?;
    vm.put("/drives/slow", &slow(&disk))?;
    vm.start()?;
    vm.split_threads(rig)?;
    vm.console.wait_for("net=listening", PATIENCE)?;
    ensure!(disk.wait_for_read(PATIENCE), "the guest does not read");

    let socket = UdpSocket::bind("172.16.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let echo = || -> Result<f64> {
        let asked = Instant::now();
        socket.send_to(b"x", "172.16.0.2:7")?;
        socket.recv(&mut [0; 8]).context("no echo while a drive hangs")?;
        Ok(us(asked.elapsed()))
    };
    // The first one also asks who has the address.
    echo()?;
    let echoes = (0..count).map(|_| echo()).collect::<Result<Vec<_>>>()?;
    let gets = (0..count).map(|_| vm.request("GET", "/", None).map(us)).collect::<Result<Vec<_>>>()?;
    if vm.console.seen("read=done").is_some() {
        bail!("the drive answered, which it was not to do");
    }
    disk.release();
    drop(vm);
    let trips = vsock(subject, rig, count)?;
    let [get, echo, vsock] = [gets, echoes, trips].map(typical_and_worst);
    let rows = [
        [&GET_P50, &GET_P99].into_iter().zip(get),
        [&ECHO_P50, &ECHO_P99].into_iter().zip(echo),
        [&VSOCK_P50, &VSOCK_P99].into_iter().zip(vsock),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Round trips of another machine with such a drive.
fn vsock(subject: &Subject, rig: &Rig, count: usize) -> Result<Vec<f64>> {
    let (_mountpoint, disk) = hanging(rig)?;
    let served = Served::start(subject, rig, "mayfly.reading=1", |vm| {
        vm.put("/drives/slow", &slow(&disk))?;
        Ok(())
    })?;
    ensure!(disk.wait_for_read(PATIENCE), "the guest does not read");
    let trips = served.round_trips(count);
    ensure!(served.vm.console.seen("read=done").is_none(), "the drive answered, which it was not to do");
    disk.release();
    trips
}

/// A file that does not answer, and the directory it is in.
fn hanging(rig: &Rig) -> Result<(TempDir, SlowDisk)> {
    let mountpoint = tempfile::tempdir_in(rig.dir.path())?;
    let disk = SlowDisk::mount(mountpoint.path(), 1 << 20).context("cannot mount a FUSE file system")?;
    Ok((mountpoint, disk))
}

fn slow(disk: &SlowDisk) -> Value {
    json!({"drive_id": "slow", "path_on_host": disk.path(), "is_root_device": false, "is_read_only": true})
}
