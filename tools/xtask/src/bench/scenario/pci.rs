//! What a PCI bus costs beside windows that are where the guest is told, and how long devices take to come and go.
//!
//! Both kinds of machine are measured in turn within a sample, in alternating order, so that a busy host is as busy for both.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::stats::quantile;
use super::super::subject::{PATIENCE, Rig, Subject, Vm};
use super::block::{number, results};
use super::{Scenario, ms, net};

static MMIO_START: Metric = Metric::lower("InstanceStart call, six devices, MMIO", "ms");
static PCI_START: Metric = Metric::lower("InstanceStart call, six devices, PCI", "ms");
static START_MORE: Metric = Metric::lower("InstanceStart call, six devices, PCI − MMIO", "ms");
static PLUG: Metric = Metric::lower("PUT /drives → the guest has read it", "ms");
static PLUG_CALL: Metric = Metric::lower("PUT /drives while the guest runs", "ms");
static UNPLUG: Metric = Metric::lower("DELETE /drives, the guest lets go", "ms");
static MMIO_READ: Metric = Metric::higher("block Sync 4 KiB random read qd 32, beside PCI", "IOPS");
static PCI_READ: Metric = Metric::higher("block Sync 4 KiB random read qd 32 on PCI", "IOPS");
static READ_RATIO: Metric = Metric::higher("block Sync 4 KiB random read qd 32, PCI to MMIO", "times");
static MMIO_SEND: Metric = Metric::higher("net guest → host 1514 B, beside PCI", "packet/s");
static PCI_SEND: Metric = Metric::higher("net guest → host 1514 B on PCI", "packet/s");
static SEND_RATIO: Metric = Metric::higher("net guest → host 1514 B, PCI to MMIO", "times");

pub(crate) const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "pci-start",
        metrics: &[&MMIO_START, &PCI_START, &START_MORE],
        rounds: Rounds { wanted: 40, warm_up: 3 },
        sample: start,
        needs_network: false,
    },
    Scenario {
        name: "hotplug",
        metrics: &[&PLUG, &PLUG_CALL, &UNPLUG],
        rounds: Rounds { wanted: 10, warm_up: 1 },
        sample: hotplug,
        needs_network: false,
    },
    Scenario {
        name: "pci-block",
        metrics: &[&MMIO_READ, &PCI_READ, &READ_RATIO],
        rounds: Rounds { wanted: 6, warm_up: 1 },
        sample: block,
        needs_network: false,
    },
    Scenario {
        name: "pci-network",
        metrics: &[&MMIO_SEND, &PCI_SEND, &SEND_RATIO],
        rounds: Rounds { wanted: 6, warm_up: 1 },
        sample: network,
        needs_network: true,
    },
];

/// Measures a machine without and one with a bus; the other one first the next time.
fn both(measure: impl Fn(&[&OsStr]) -> Result<f64>) -> Result<[f64; 2]> {
    static PCI_FIRST: AtomicBool = AtomicBool::new(false);
    let [mmio, pci]: [&[&OsStr]; 2] = [&[], &["--enable-pci".as_ref()]];
    if PCI_FIRST.fetch_xor(true, Ordering::Relaxed) {
        let second = measure(pci)?;
        return Ok([measure(mmio)?, second]);
    }
    Ok([measure(mmio)?, measure(pci)?])
}

fn start(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let disk = rig.disk("start.img", 1)?;
    let [mmio, pci] = both(|arguments| {
        let mut vm = subject.spawn_configured_with(rig, "mayfly.mode=spin", arguments)?;
        for id in ["a", "b", "c", "d"] {
            vm.drive(id, &disk, "Sync")?;
        }
        vm.put("/entropy", &json!({}))?;
        vm.put("/balloon", &json!({"amount_mib": 0, "deflate_on_oom": false}))?;
        Ok(ms(vm.start()?.call))
    })?;
    Ok(vec![(&MMIO_START, mmio), (&PCI_START, pci), (&START_MORE, pci - mmio)])
}

/// A drive that comes and goes; each time the first bytes are others, so that the guest's lines can be told from one another.
fn hotplug(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let cycles: u64 = if rig.quick { 5 } else { 30 };
    let disk = rig.disk("plug.img", 1)?;
    let file = std::fs::File::options().write(true).open(&disk)?;
    let mut vm = subject.spawn_configured_with(rig, "mayfly.mode=hotplug", &["--enable-pci".as_ref()])?;
    vm.start()?;
    vm.console.wait_for("hotplug=started", PATIENCE)?;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for cycle in 0..cycles {
        let mark = 0x10_0000 + cycle;
        file.write_all_at(&mark.to_le_bytes(), 0)?;
        let plugged = plug(&mut vm, &disk, &format!("drive={mark:#x}"))?;
        let unplugged = ms(vm.request("DELETE", "/drives/d", None)?);
        for (all, time) in times.iter_mut().zip([plugged[0], plugged[1], unplugged]) {
            all.push(time);
        }
    }
    let metrics = [&PLUG, &PLUG_CALL, &UNPLUG];
    let medians = times.map(|mut all| {
        all.sort_by(f64::total_cmp);
        quantile(&all, 0.5).unwrap_or(f64::NAN)
    });
    Ok(metrics.into_iter().zip(medians).collect())
}

/// From the request to the guest's line about what it read, and to the answer.
fn plug(vm: &mut Vm, disk: &std::path::Path, line: &str) -> Result<[f64; 2]> {
    let body = json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false});
    let plugged = vm.put_and_hear("/drives/d", &body, |console| console.seen(line));
    let plugged = plugged.with_context(|| format!("no {line} from the guest"))?;
    Ok([ms(plugged.first_output), ms(plugged.call)])
}

fn block(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let requests: u32 = if rig.quick { 5_000 } else { 100_000 };
    let disk = rig.disk("block.img", super::block::DISK_MIB)?;
    let words = format!("mayfly.mode=bench-block mayfly.rw=randread mayfly.bs=4096 mayfly.qd=32 mayfly.ops={requests}");
    let [mmio, pci] = both(|arguments| {
        let mut vm = subject.spawn_configured_with(rig, &words, arguments)?;
        vm.drive("disk", &disk, "Sync")?;
        vm.start()?;
        vm.split_threads(rig)?;
        let results = results(&mut vm)?;
        if number(&results, "errors")? != 0.0 || number(&results, "completed")? != f64::from(requests) {
            bail!("not every request was served: {results:?}");
        }
        Ok(number(&results, "completed")? / (number(&results, "elapsed_ns")? / 1e9))
    })?;
    Ok(vec![(&MMIO_READ, mmio), (&PCI_READ, pci), (&READ_RATIO, pci / mmio)])
}

fn network(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let [mmio, pci] = both(|arguments| net::transmit_rate(1514, subject, rig, arguments))?;
    Ok(vec![(&MMIO_SEND, mmio), (&PCI_SEND, pci), (&SEND_RATIO, pci / mmio)])
}
