//! How long one API request takes on a kept connection, before and while a guest runs.

use anyhow::Result;

use super::super::pairs::{Better, Metric, Rounds, Sample};
use super::super::stats::quantile;
use super::super::subject::{Place, Rig, Subject, Vm, machine};
use super::{Scenario, us};

static GET_P50: Metric = lower("GET /, p50");
static GET_P99: Metric = lower("GET /, p99");
static PUT_P50: Metric = lower("PUT /machine-config, p50");
static PUT_P99: Metric = lower("PUT /machine-config, p99");
static RUNNING_P50: Metric = lower("GET / beside a guest, p50");
static RUNNING_P99: Metric = lower("GET / beside a guest, p99");

const fn lower(name: &'static str) -> Metric {
    Metric { name, unit: "µs", better: Better::Lower }
}

pub(crate) const REQUESTS: Scenario = Scenario {
    name: "requests",
    metrics: &[&GET_P50, &GET_P99, &PUT_P50, &PUT_P99, &RUNNING_P50, &RUNNING_P99],
    rounds: Rounds { wanted: 10, warm_up: 1 },
    sample: requests,
    needs_network: false,
};

fn requests(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let count = if rig.quick { 100 } else { 1000 };
    let mut vm = subject.spawn(rig, Place::Apart)?;
    let mut sample = Sample::new();
    let body = machine().to_string();
    let [p50, p99] = latency(&mut vm, count, "GET", "/", None)?;
    sample.extend([(&GET_P50, p50), (&GET_P99, p99)]);
    let [p50, p99] = latency(&mut vm, count, "PUT", "/machine-config", Some(&body))?;
    sample.extend([(&PUT_P50, p50), (&PUT_P99, p99)]);
    vm.kill()?;

    let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
    vm.start()?;
    vm.split_threads(rig)?;
    let [p50, p99] = latency(&mut vm, count, "GET", "/", None)?;
    sample.extend([(&RUNNING_P50, p50), (&RUNNING_P99, p99)]);
    Ok(sample)
}

/// p50 and p99 of `count` requests one after the other, in µs.
fn latency(vm: &mut Vm, count: usize, method: &str, path: &str, body: Option<&str>) -> Result<[f64; 2]> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(us(vm.request(method, path, body)?));
    }
    times.sort_by(f64::total_cmp);
    Ok([0.5, 0.99].map(|q| quantile(&times, q).unwrap_or(f64::NAN)))
}
