//! virtio-blk, driven by the polling bare-metal guest, on a file in memory: the VMM's and the
//! kernel's cost, not a disk's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::pairs::{Better, Metric, Rounds, Sample};
use super::super::subject::{Rig, Subject, Vm};
use super::Scenario;

/// How long one run of a load may take.
const RUN: Duration = Duration::from_secs(120);
/// Larger than any cache of the processor's.
pub(super) const DISK_MIB: usize = 256;

/// Two queues on two vCPUs, and one queue on one of them: the same requests in all, as many in flight.
struct Spread {
    engine: &'static str,
    requests: u32,
    one: &'static Metric,
    two: &'static Metric,
    ratio: &'static Metric,
}

fn run_spread(spread: &Spread, subject: &Subject, rig: &Rig) -> Result<Sample> {
    let [one, two] = [1, 2].map(|queues| run_queues(spread, subject, rig, queues));
    let (one, two) = (one?, two?);
    Ok(vec![(spread.one, one), (spread.two, two), (spread.ratio, two / one)])
}

/// IOPS of 4 KiB random reads with 32 in flight. No thread is bound to a processor: where they go is part of what is measured.
fn run_queues(spread: &Spread, subject: &Subject, rig: &Rig, queues: u32) -> Result<f64> {
    let disk = rig.disk("block.img", DISK_MIB)?;
    let requests = if rig.quick { spread.requests / 20 } else { spread.requests };
    let words = format!(
        "mayfly.mode=bench-block mayfly.rw=randread mayfly.bs=4096 mayfly.qd=32 mayfly.ops={requests} mayfly.queues={queues}"
    );
    // Both machines have two vCPUs, of which the second one stands still if there is one queue.
    let mut vm = subject.spawn_with_vcpus(rig, &words, 2)?;
    vm.drive_with_queues("disk", &disk, spread.engine, queues)?;
    vm.start()?;
    let results = results(&mut vm)?;
    if number(&results, "errors")? != 0.0 || number(&results, "completed")? != f64::from(requests) {
        bail!("not every request was served: {results:?}");
    }
    Ok(number(&results, "completed")? / (number(&results, "elapsed_ns")? / 1e9))
}

/// One load on one engine; the metrics are its own.
struct Load {
    engine: &'static str,
    /// The guest's name for it.
    rw: &'static str,
    block_bytes: u32,
    depth: u32,
    /// Requests in a full run, chosen to take a second or so.
    requests: u32,
    rate: &'static Metric,
    p50: &'static Metric,
    p99: &'static Metric,
}

fn run(load: &Load, subject: &Subject, rig: &Rig) -> Result<Sample> {
    let disk = rig.disk("block.img", DISK_MIB)?;
    let requests = if rig.quick { load.requests / 20 } else { load.requests };
    let words = format!(
        "mayfly.mode=bench-block mayfly.rw={} mayfly.bs={} mayfly.qd={} mayfly.ops={requests}",
        load.rw, load.block_bytes, load.depth
    );
    let mut vm = subject.spawn_configured(rig, &words)?;
    vm.drive("disk", &disk, load.engine)?;
    vm.start()?;
    vm.split_threads(rig)?;
    let results = results(&mut vm)?;
    let number = |key: &str| number(&results, key);
    if number("errors")? != 0.0 || number("completed")? != f64::from(requests) {
        bail!("not every request was served: {results:?}");
    }
    let per_second = number("completed")? / (number("elapsed_ns")? / 1e9);
    let rate = if load.rate.unit == "IOPS" {
        per_second
    } else {
        per_second * f64::from(load.block_bytes) / f64::from(1 << 20)
    };
    Ok(vec![(load.rate, rate), (load.p50, number("p50_ns")? / 1e3), (load.p99, number("p99_ns")? / 1e3)])
}

/// What the guest measured, once it is done.
pub(super) fn results(vm: &mut Vm) -> Result<BTreeMap<String, String>> {
    vm.console.wait_for("mayfly-guest done", RUN)?;
    let results = vm.console.results();
    for complaint in ["error", "panic"] {
        if let Some(why) = results.get(complaint) {
            bail!("the guest says {complaint}={why}");
        }
    }
    Ok(results)
}

pub(super) fn number(results: &BTreeMap<String, String>, key: &str) -> Result<f64> {
    let text = results.get(key).with_context(|| format!("the guest did not print {key}"))?;
    text.parse().with_context(|| format!("the guest printed {key}={text}"))
}

/// A load with its metrics and its scenario: everything about it is known while compiling.
macro_rules! load {
    ($engine:literal, $rw:literal, $name:literal, $bytes:literal, $depth:literal, $requests:literal, $unit:literal) => {{
        static RATE: Metric =
            Metric { name: concat!("block ", $engine, " ", $name), unit: $unit, better: Better::Higher };
        static P50: Metric =
            Metric { name: concat!("block ", $engine, " ", $name, ", p50"), unit: "µs", better: Better::Lower };
        static P99: Metric =
            Metric { name: concat!("block ", $engine, " ", $name, ", p99"), unit: "µs", better: Better::Lower };
        static LOAD: Load = Load {
            engine: $engine,
            rw: $rw,
            block_bytes: $bytes,
            depth: $depth,
            requests: $requests,
            rate: &RATE,
            p50: &P50,
            p99: &P99,
        };
        Scenario {
            name: concat!("block-", $engine, "-", $rw, "-", $bytes, "-", $depth),
            metrics: &[&RATE, &P50, &P99],
            rounds: Rounds { wanted: 6, warm_up: 1 },
            sample: |subject, rig| run(&LOAD, subject, rig),
            needs_network: false,
        }
    }};
}

macro_rules! spread {
    ($engine:literal) => {{
        static ONE: Metric =
            Metric::higher(concat!("block ", $engine, " 4 KiB random read qd 32, one queue of two vCPUs"), "IOPS");
        static TWO: Metric =
            Metric::higher(concat!("block ", $engine, " 4 KiB random read qd 32, two queues on two vCPUs"), "IOPS");
        static RATIO: Metric = Metric::higher(concat!("block ", $engine, " two queues to one"), "times");
        static SPREAD: Spread = Spread { engine: $engine, requests: 100_000, one: &ONE, two: &TWO, ratio: &RATIO };
        Scenario {
            name: concat!("block-", $engine, "-queues"),
            metrics: &[&ONE, &TWO, &RATIO],
            rounds: Rounds { wanted: 6, warm_up: 1 },
            sample: |subject, rig| run_spread(&SPREAD, subject, rig),
            needs_network: false,
        }
    }};
}

pub(crate) const SCENARIOS: [Scenario; 14] = [
    load!("Sync", "randread", "4 KiB random read qd 1", 4096, 1, 20000, "IOPS"),
    load!("Sync", "randread", "4 KiB random read qd 32", 4096, 32, 100000, "IOPS"),
    load!("Sync", "randwrite", "4 KiB random write qd 1", 4096, 1, 20000, "IOPS"),
    load!("Sync", "randwrite", "4 KiB random write qd 32", 4096, 32, 100000, "IOPS"),
    load!("Sync", "read", "256 KiB read qd 16", 262144, 16, 6000, "MiB/s"),
    load!("Sync", "write", "256 KiB write qd 16", 262144, 16, 6000, "MiB/s"),
    load!("Async", "randread", "4 KiB random read qd 1", 4096, 1, 20000, "IOPS"),
    load!("Async", "randread", "4 KiB random read qd 32", 4096, 32, 100000, "IOPS"),
    load!("Async", "randwrite", "4 KiB random write qd 1", 4096, 1, 20000, "IOPS"),
    load!("Async", "randwrite", "4 KiB random write qd 32", 4096, 32, 100000, "IOPS"),
    load!("Async", "read", "256 KiB read qd 16", 262144, 16, 6000, "MiB/s"),
    load!("Async", "write", "256 KiB write qd 16", 262144, 16, 6000, "MiB/s"),
    spread!("Sync"),
    spread!("Async"),
];
