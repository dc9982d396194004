//! Requests of the polling bare-metal guest to the metadata service.

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Rig, Subject};
use super::Scenario;
use super::block::{number, results};
use super::net::TAP;

static KEPT: Metric = Metric::higher("metadata requests, one connection", "/s");
static FRESH: Metric = Metric::higher("metadata requests, one connection each", "/s");

pub(crate) const MMDS: Scenario = Scenario {
    name: "mmds",
    metrics: &[&KEPT, &FRESH],
    rounds: Rounds { wanted: 6, warm_up: 1 },
    sample: mmds,
    needs_network: true,
};

fn mmds(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let requests = if rig.quick { 1000 } else { 10_000 };
    Ok(vec![(&KEPT, per_second(subject, rig, requests, false)?), (&FRESH, per_second(subject, rig, requests, true)?)])
}

fn per_second(subject: &Subject, rig: &Rig, requests: u64, fresh: bool) -> Result<f64> {
    let (path, fresh) = ("/latest/meta-data/ami-id", u8::from(fresh));
    let words =
        format!("mayfly.mode=mmds mayfly.requests={requests} mayfly.path={path} mayfly.fresh={fresh} mayfly.quiet=1");
    let mut vm = subject.spawn_configured(rig, &format!("{words} mayfly.ttl=21600"))?;
    let interface = json!({"iface_id": "eth0", "host_dev_name": TAP, "guest_mac": "02:00:00:00:00:02"});
    vm.put("/network-interfaces/eth0", &interface)?;
    vm.put("/mmds/config", &json!({"network_interfaces": ["eth0"], "version": "V2"}))?;
    vm.put("/mmds", &json!({"latest": {"meta-data": {"ami-id": "ami-12345"}}}))?;
    vm.start()?;
    vm.split_threads(rig)?;
    let results = results(&mut vm)?;
    let good = number(&results, "good")?;
    ensure!(good == requests as f64, "{good} of {requests} requests were served: {results:?}");
    Ok(good / (number(&results, "elapsed_ns")? / 1e9))
}
