//! From nothing to an API, from an API to a guest that speaks, and from there to nothing.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Place, Rig, Subject, Vm};
use super::{Scenario, ms};

static CONNECT: Metric = Metric::lower("exec → API accepts", "ms");
static ANSWER: Metric = Metric::lower("exec → API answers", "ms");
static CPU: Metric = Metric::lower("CPU time until the API answers", "ms");
static KILL_IDLE: Metric = Metric::lower("kill → reaped, no guest", "ms");
static CALL: Metric = Metric::lower("InstanceStart call", "ms");
static OUTPUT: Metric = Metric::lower("InstanceStart → first guest output", "ms");
static KILL: Metric = Metric::lower("kill → reaped, 50 ms after start", "ms");

/// No guest: process start and end.
pub(crate) const API: Scenario = Scenario {
    name: "api",
    metrics: &[&CONNECT, &ANSWER, &CPU, &KILL_IDLE],
    rounds: Rounds { wanted: 60, warm_up: 3 },
    sample: api,
    needs_network: false,
};

/// A guest with one drive: start and kill.
pub(crate) const INSTANCE: Scenario = Scenario {
    name: "start",
    metrics: &[&CALL, &OUTPUT, &KILL],
    rounds: Rounds { wanted: 60, warm_up: 3 },
    sample: instance,
    needs_network: false,
};

fn api(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let mut vm = subject.spawn(rig, Place::Apart)?;
    let accepted = Instant::now();
    vm.request("GET", "/", None)?;
    let answer = vm.exec_to_connect + accepted.elapsed();
    let cpu = cpu_time(&vm)?;
    Ok(vec![(&CONNECT, ms(vm.exec_to_connect)), (&ANSWER, ms(answer)), (&CPU, ms(cpu)), (&KILL_IDLE, ms(vm.kill()?))])
}

fn instance(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let disk = rig.disk("start.img", 1)?;
    let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
    vm.drive("disk", &disk, "Sync")?;
    let started = vm.start()?;
    // An age is part of what is measured: the kernel owes a young VM a grace period.
    std::thread::sleep(Duration::from_millis(50));
    Ok(vec![(&CALL, ms(started.call)), (&OUTPUT, ms(started.first_output)), (&KILL, ms(vm.kill()?))])
}

/// Processor time of all threads so far.
fn cpu_time(vm: &Vm) -> Result<Duration> {
    let mut nanoseconds = 0;
    for (tid, _) in vm.threads()? {
        nanoseconds += super::idle::on_cpu_ns(vm.pid(), tid)?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
