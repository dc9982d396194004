//! A guest that has written most of its memory and never stops talking: saved, and gone on with in another process.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tempfile::TempDir;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Place, Rig, Subject, machine};
use super::{Scenario, ms};

static PAUSE: Metric = Metric::lower("pause call", "ms");
static CREATE: Metric = Metric::lower("full snapshot of 128 MiB, 100 of them written", "ms");
static FILE: Metric = Metric::lower("memory file of a guest that uses little", "MiB");
static CALL: Metric = Metric::lower("snapshot load call", "ms");
static OUTPUT: Metric = Metric::lower("snapshot load → first guest output", "ms");
static ASLEEP: Metric = Metric::lower("snapshot load call, guest that sleeps", "ms");

/// Save and load, by files in memory.
pub(crate) const SNAPSHOT: Scenario = Scenario {
    name: "snapshot",
    metrics: &[&PAUSE, &CREATE, &FILE, &CALL, &OUTPUT, &ASLEEP],
    rounds: Rounds { wanted: 30, warm_up: 2 },
    sample,
    needs_network: false,
};

fn sample(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let dir = TempDir::new_in(rig.dir.path())?;
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    // It speaks without a pause, so its first byte comes with its first instructions.
    let words =
        |pool_mib: u32| format!("mayfly.mode=life mayfly.after=1000000 mayfly.pace_ms=0 mayfly.pool_mib={pool_mib}");
    let save = |pool_mib: u32| -> Result<[Duration; 2]> {
        let mut vm = subject.spawn_configured(rig, &words(pool_mib))?;
        vm.start()?;
        vm.console.wait_for("tick=3 ", Duration::from_secs(20))?;
        let pause = vm.request("PATCH", "/vm", Some(r#"{"state": "Paused"}"#))?;
        let create = vm.put("/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory}))?;
        Ok([pause, create])
    };
    let [pause, create] = save(100)?;
    let mut vm = subject.spawn(rig, Place::Anywhere)?;
    let started = vm.load(&state, &memory)?;
    drop(vm);
    save(1)?;
    let small =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&memory)?) as f64 * 512.0 / f64::from(1 << 20);
    // The answer of one that begins to work at once may have to wait for a processor.
    let mut vm = subject.spawn(rig, Place::Anywhere)?;
    vm.put("/machine-config", &machine())?;
    vm.put("/boot-source", &json!({"kernel_image_path": rig.sleeper()?}))?;
    vm.put("/actions", &json!({"action_type": "InstanceStart"}))?;
    vm.request("PATCH", "/vm", Some(r#"{"state": "Paused"}"#))?;
    vm.put("/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory}))?;
    drop(vm);
    let mut vm = subject.spawn(rig, Place::Anywhere)?;
    let backend = json!({"backend_type": "File", "backend_path": memory});
    let body = json!({"snapshot_path": state, "mem_backend": backend, "resume_vm": true});
    let asleep = vm.put("/snapshot/load", &body)?;
    drop(vm);
    Ok(vec![
        (&PAUSE, ms(pause)),
        (&CREATE, ms(create)),
        (&FILE, small),
        (&CALL, ms(started.call)),
        (&OUTPUT, ms(started.first_output)),
        (&ASLEEP, ms(asleep)),
    ])
}
