//! How long one API request takes on a kept connection, before and while a guest runs.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Place, Rig, Subject, Vm, machine};
use super::{Scenario, typical_and_worst, us};

static GET_P50: Metric = Metric::lower("GET /, p50", "µs");
static GET_P99: Metric = Metric::lower("GET /, p99", "µs");
static PUT_P50: Metric = Metric::lower("PUT /machine-config, p50", "µs");
static PUT_P99: Metric = Metric::lower("PUT /machine-config, p99", "µs");
static BOOT_P50: Metric = Metric::lower("PUT /boot-source, p50", "µs");
static BOOT_P99: Metric = Metric::lower("PUT /boot-source, p99", "µs");
static DRIVE_P50: Metric = Metric::lower("PUT /drives, p50", "µs");
static DRIVE_P99: Metric = Metric::lower("PUT /drives, p99", "µs");
static MMDS_P50: Metric = Metric::lower("PUT /mmds, p50", "µs");
static MMDS_P99: Metric = Metric::lower("PUT /mmds, p99", "µs");
static PATCH_P50: Metric = Metric::lower("PATCH /vm, p50", "µs");
static PATCH_P99: Metric = Metric::lower("PATCH /vm, p99", "µs");
static RUNNING_P50: Metric = Metric::lower("GET / beside a guest, p50", "µs");
static RUNNING_P99: Metric = Metric::lower("GET / beside a guest, p99", "µs");

pub(crate) const REQUESTS: Scenario = Scenario {
    name: "requests",
    metrics: &[
        &GET_P50,
        &GET_P99,
        &PUT_P50,
        &PUT_P99,
        &BOOT_P50,
        &BOOT_P99,
        &DRIVE_P50,
        &DRIVE_P99,
        &MMDS_P50,
        &MMDS_P99,
        &RUNNING_P50,
        &RUNNING_P99,
        &PATCH_P50,
        &PATCH_P99,
    ],
    rounds: Rounds { wanted: 10, warm_up: 1 },
    sample: requests,
    needs_network: false,
};

fn requests(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let count = if rig.quick { 100 } else { 1000 };
    let mut vm = subject.spawn(rig, Place::Apart)?;
    let mut sample = Sample::new();
    let [p50, p99] = latency(&mut vm, count, "GET", "/", &[])?;
    sample.extend([(&GET_P50, p50), (&GET_P99, p99)]);
    let disk = rig.disk("requests", 1)?;
    let puts: [(&'static Metric, &'static Metric, &str, Value); 4] = [
        (&PUT_P50, &PUT_P99, "/machine-config", machine()),
        (&BOOT_P50, &BOOT_P99, "/boot-source", json!({"kernel_image_path": rig.kernel, "boot_args": "a=b"})),
        (&DRIVE_P50, &DRIVE_P99, "/drives/d", json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false})),
        (&MMDS_P50, &MMDS_P99, "/mmds", json!({"latest": {"meta-data": {"local-hostname": "vm"}}})),
    ];
    for (half, most, path, body) in puts {
        let [p50, p99] = latency(&mut vm, count, "PUT", path, &[body])?;
        sample.extend([(half, p50), (most, p99)]);
    }
    vm.kill()?;

    let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
    vm.start()?;
    vm.split_threads(rig)?;
    let [p50, p99] = latency(&mut vm, count, "GET", "/", &[])?;
    sample.extend([(&RUNNING_P50, p50), (&RUNNING_P99, p99)]);
    let states = ["Paused", "Resumed"].map(|state| json!({"state": state}));
    let [p50, p99] = latency(&mut vm, count, "PATCH", "/vm", &states)?;
    sample.extend([(&PATCH_P50, p50), (&PATCH_P99, p99)]);
    Ok(sample)
}

/// p50 and p99 of `count` requests one after the other, in µs. Their bodies are these in turn, if there are any.
fn latency(vm: &mut Vm, count: usize, method: &str, path: &str, bodies: &[Value]) -> Result<[f64; 2]> {
    let bodies: Vec<String> = bodies.iter().map(Value::to_string).collect();
    let mut bodies = bodies.iter().cycle();
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(us(vm.request(method, path, bodies.next().map(String::as_str))?));
    }
    Ok(typical_and_worst(times))
}
