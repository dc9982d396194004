//! Sockets between host programs and the polling bare-metal guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{PATIENCE, Rig, Subject, Vm};
use super::super::sys;
use super::{Scenario, memory, typical_and_worst, us};

static TO_GUEST: Metric = Metric::higher("vsock host → guest", "MiB/s");
static FROM_GUEST: Metric = Metric::higher("vsock guest → host", "MiB/s");
static TRIP_P50: Metric = Metric::lower("vsock round trip, 1 byte, p50", "µs");
static TRIP_P99: Metric = Metric::lower("vsock round trip, 1 byte, p99", "µs");
static IDLE: Metric = Metric::lower("memory of an idle vsock connection", "KiB");

/// Ports of the guest's services: see `guest::Mode::Vsock`.
const ECHO: u32 = 1;
const DRAIN: u32 = 5;
const SPRING: u32 = 6;
const IDLE_CONNECTIONS: usize = 1000;

pub(crate) const VSOCK: Scenario = Scenario {
    name: "vsock",
    metrics: &[&TO_GUEST, &FROM_GUEST, &TRIP_P50, &TRIP_P99, &IDLE],
    rounds: Rounds { wanted: 6, warm_up: 1 },
    sample: vsock,
    needs_network: false,
};

/// A guest with services, and the directory its socket is in.
pub(super) struct Served {
    pub(super) vm: Vm,
    _dir: TempDir,
    path: PathBuf,
}

impl Served {
    /// Starts one whose kernel command line has these words, too. `prepare` may add to the configuration.
    pub(super) fn start(
        subject: &Subject,
        rig: &Rig,
        words: &str,
        prepare: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir_in(rig.dir.path())?;
        let path = dir.path().join("v");
        let mut vm = subject.spawn_configured(rig, &format!("mayfly.mode=vsock mayfly.ms=600000 {words}"))?;
        vm.put("/vsock", &json!({"guest_cid": 3, "uds_path": path}))?;
        prepare(&mut vm)?;
        vm.start()?;
        vm.split_threads(rig)?;
        vm.console.wait_for("vsock=started", PATIENCE)?;
        Ok(Self { vm, _dir: dir, path })
    }

    fn connect(&self, port: u32) -> Result<UnixStream> {
        connect(&self.path, port)
    }

    /// Microseconds of `count` round trips of one byte.
    pub(super) fn round_trips(&self, count: usize) -> Result<Vec<f64>> {
        let mut stream = self.connect(ECHO)?;
        let mut byte = [1];
        (0..count)
            .map(|_| {
                let begun = Instant::now();
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte).context("no echo")?;
                Ok(us(begun.elapsed()))
            })
            .collect()
    }
}

fn connect(path: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "CONNECT {port}")?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the guest does not accept")?;
    }
    Ok(stream)
}

fn vsock(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let mib: u64 = if rig.quick { 64 } else { 1024 };
    let served = Served::start(subject, rig, &format!("mayfly.bytes={}", mib << 20), |_| Ok(()))?;
    // The vCPU polls and the thread whose speed is measured works: they have a CPU each. We have another one, or run where there is room.
    if let Some(third) = rig.cpus.nth(2) {
        sys::pin(0, third)?;
    }
    let measured = measure(&served, mib, rig.quick);
    sys::pin(0, rig.cpus)?;
    measured
}

fn measure(served: &Served, mib: u64, quick: bool) -> Result<Sample> {
    let per_second = |begun: Instant| mib as f64 / begun.elapsed().as_secs_f64();
    let mut buffer = vec![0; 1 << 18];

    // First: later the process has memory that it has used and not given back.
    let before = memory::of(served.vm.pid())?.0.rss;
    let idle = (0..IDLE_CONNECTIONS).map(|_| served.connect(ECHO)).collect::<Result<Vec<_>>>()?;
    let grown = memory::of(served.vm.pid())?.0.rss.saturating_sub(before);
    let each = grown as f64 / idle.len() as f64;
    drop(idle);

    let mut drain = served.connect(DRAIN)?;
    let begun = Instant::now();
    for _ in 0..mib * 4 {
        drain.write_all(&buffer)?;
    }
    drain.shutdown(Shutdown::Write)?;
    ensure!(drain.read(&mut buffer)? == 0, "the guest sends something back");
    let to_guest = per_second(begun);

    let mut spring = served.connect(SPRING)?;
    let begun = Instant::now();
    let mut received = 0;
    loop {
        match spring.read(&mut buffer)? {
            0 => break,
            count => received += count as u64,
        }
    }
    ensure!(received == mib << 20, "{received} bytes of {mib} MiB arrived");
    let from_guest = per_second(begun);

    let [p50, p99] = typical_and_worst(served.round_trips(if quick { 500 } else { 5000 })?);
    Ok(vec![(&TO_GUEST, to_guest), (&FROM_GUEST, from_guest), (&TRIP_P50, p50), (&TRIP_P99, p99), (&IDLE, each)])
}
