//! A restored guest writes to 32 MiB at once: as its memory comes, and with what it wants known.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Place, Rig, Subject};
use super::{Scenario, ms};

static WARM: Metric = Metric::lower("restore → 32 MiB written, file in memory", "ms");
static WARM_SET: Metric = Metric::lower("the same with a working set", "ms");
static COLD: Metric = Metric::lower("restore → 32 MiB written, file on disk and not cached", "ms");
static COLD_SET: Metric = Metric::lower("the same from disk with a working set", "ms");

/// By the native route.
pub(crate) const WORKING_SET: Scenario = Scenario {
    name: "working-set",
    metrics: &[&WARM, &WARM_SET, &COLD, &COLD_SET],
    rounds: Rounds { wanted: 20, warm_up: 1 },
    sample,
    needs_network: false,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn sample(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let in_memory = TempDir::new_in(rig.dir.path())?;
    let on_disk = tempfile::tempdir()?;
    let mut times = Vec::new();
    for (dir, cold) in [(in_memory.path(), false), (on_disk.path(), true)] {
        let (state, memory, set) = (dir.join("state"), dir.join("memory"), dir.join("set"));
        let mut vm = subject.spawn_configured(
            rig,
            "mayfly.mode=life mayfly.after=1000000 mayfly.pace_ms=10 mayfly.pool_mib=32 mayfly.sweep=1",
        )?;
        vm.start()?;
        vm.console.wait_for("tick=3 ", PATIENCE)?;
        vm.request("PATCH", "/vm", Some(r#"{"state": "Paused"}"#))?;
        vm.put("/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory}))?;
        drop(vm);
        let restore = |more: &Value| -> Result<_> {
            if cold {
                forget(&memory)?;
            }
            let mut vm = subject.spawn(rig, Place::Anywhere)?;
            let took = vm.restore(&state, &memory, more, "swept=")?;
            Ok((vm, took))
        };
        let (_, without) = restore(&json!({}))?;
        let (mut recorded, _) = restore(&json!({"working_set_path": set}))?;
        recorded.request("PATCH", "/vm", Some(r#"{"state": "Paused"}"#))?;
        let deadline = Instant::now() + PATIENCE;
        while !set.exists() {
            ensure!(Instant::now() < deadline, "no working set was recorded{}", recorded.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(recorded);
        let (_, with) = restore(&json!({"working_set_path": set}))?;
        times.extend([ms(without), ms(with)]);
    }
    Ok([&WARM, &WARM_SET, &COLD, &COLD_SET].into_iter().zip(times).collect())
}

/// Has the host forget what is in a file.
fn forget(path: &Path) -> Result<()> {
    let status = Command::new("dd")
        .arg(format!("of={}", path.display()))
        .args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "dd does not forget {}", path.display());
    Ok(())
}
