//! What the VMM's own threads do while the guest wants nothing: nothing, one hopes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Rig, Subject, Vm, is_kernels, is_vcpu};
use super::Scenario;

static WAKEUPS: Metric = Metric::lower("wake-ups of VMM threads, idle", "1/s");
static CPU: Metric = Metric::lower("CPU time of VMM threads, idle", "µs/s");
static THREADS: Metric = Metric::lower("threads, without the kernel's", "");

pub(crate) const IDLE: Scenario = Scenario {
    name: "idle",
    metrics: &[&WAKEUPS, &CPU, &THREADS],
    rounds: Rounds { wanted: 4, warm_up: 0 },
    sample: idle,
    needs_network: false,
};

fn idle(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let disk = rig.disk("start.img", 1)?;
    let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
    vm.drive("disk", &disk, "Sync")?;
    vm.start()?;
    vm.split_threads(rig)?;
    std::thread::sleep(Duration::from_millis(if rig.quick { 50 } else { 500 }));
    let (before, start) = (work(&vm)?, Instant::now());
    std::thread::sleep(Duration::from_millis(if rig.quick { 500 } else { 3000 }));
    let (after, seconds) = (work(&vm)?, start.elapsed().as_secs_f64());

    let (mut wakeups, mut cpu) = (0, 0);
    for (tid, (switches, ns)) in &after {
        let (switches_before, ns_before) = before.get(tid).copied().unwrap_or_default();
        wakeups += switches.saturating_sub(switches_before);
        cpu += ns.saturating_sub(ns_before);
    }
    let threads = vm.threads()?;
    let threads = threads.iter().filter(|(_, name)| !is_kernels(name)).count();
    Ok(vec![(&WAKEUPS, wakeups as f64 / seconds), (&CPU, cpu as f64 / 1e3 / seconds), (&THREADS, threads as f64)])
}

/// By thread that neither runs guest code nor is the kernel's own: how often it went to sleep
/// by itself, and nanoseconds on a CPU.
fn work(vm: &Vm) -> Result<BTreeMap<u32, (u64, u64)>> {
    let mut work = BTreeMap::new();
    for (tid, name) in vm.threads()? {
        if is_vcpu(&name) || is_kernels(&name) {
            continue;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", vm.pid()))?;
        let switches = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .and_then(|count| count.trim().parse().ok())
            .context("no count of context switches in /proc")?;
        work.insert(tid, (switches, on_cpu_ns(vm.pid(), tid)?));
    }
    Ok(work)
}

/// Nanoseconds the thread has spent on a CPU (the kernel's scheduler statistics).
pub(crate) fn on_cpu_ns(pid: u32, tid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))
        .context("this kernel has no per-thread scheduler statistics")?;
    let first = text.split_whitespace().next();
    first.and_then(|ns| ns.parse().ok()).context("an empty schedstat")
}
