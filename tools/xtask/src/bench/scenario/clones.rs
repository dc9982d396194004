//! Processes that wait to be clones, and become some: of a busy guest that has written much, and of one that sleeps.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Place, Rig, Subject, Vm};
use super::{Scenario, ms};

static PAUSE: Metric = Metric::lower("clone of a busy VM, 100 of 256 MiB written: it stands still", "ms");
static CHILD: Metric = Metric::lower("clone of a busy VM: offered → runs", "ms");
static IDLE: Metric = Metric::lower("clone of an idle VM: offered → runs", "ms");
static MANY: Metric = Metric::lower("100 clones: exec of all → all run", "ms");
static CALL: Metric = Metric::lower("100 clones: POST /clones", "ms");
static PRIVATE: Metric = Metric::lower("private memory of an idle clone", "MiB");

/// Clones of machines that run.
pub(crate) const CLONES: Scenario = Scenario {
    name: "clones",
    metrics: &[&PAUSE, &CHILD, &IDLE, &MANY, &CALL, &PRIVATE],
    rounds: Rounds { wanted: 20, warm_up: 2 },
    sample,
    needs_network: false,
};

const MANY_CLONES: usize = 100;

/// Processes that wait, and where.
struct Waiting {
    vms: Vec<Vm>,
    sockets: Vec<PathBuf>,
    _dir: TempDir,
}

impl Waiting {
    fn start(subject: &Subject, rig: &Rig, count: usize) -> Result<Self> {
        let dir = TempDir::new_in(rig.dir.path())?;
        let sockets: Vec<_> = (0..count).map(|n| dir.path().join(n.to_string())).collect();
        let start =
            |socket: &PathBuf| subject.spawn_with(rig, Place::Anywhere, &["--clone-sock".as_ref(), socket.as_os_str()]);
        let vms = sockets.iter().map(start).collect::<Result<_>>()?;
        Ok(Self { vms, sockets, _dir: dir })
    }

    /// They become clones: how long the call took, and its answer.
    fn become_clones_of(&self, parent: &mut Vm) -> Result<(Duration, Value)> {
        let children: Vec<_> = self.sockets.iter().map(|socket| json!({"socket": socket})).collect();
        let (took, answer) = parent.ask("POST", "/clones", &json!({"children": children}))?;
        let all = answer["children"].as_array().context("children")?;
        ensure!(all.iter().all(|child| child["load_us"].is_u64()), "not all are: {answer}");
        Ok((took, answer))
    }
}

fn sample(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let clonable = || subject.spawn_with(rig, Place::Anywhere, &["--clonable".as_ref()]);
    let ms_of = |us: &Value| us.as_u64().map(|us| us as f64 / 1e3).context("a time");
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 256});

    let mut busy = clonable()?;
    busy.configure(rig, "mayfly.mode=life mayfly.after=1000000 mayfly.pace_ms=0 mayfly.pool_mib=100", &machine)?;
    busy.start()?;
    busy.console.wait_for("tick=3 ", Duration::from_secs(20))?;
    let waiting = Waiting::start(subject, rig, 1)?;
    let (_, answer) = waiting.become_clones_of(&mut busy)?;
    let (pause, child) = (ms_of(&answer["pause_us"])?, ms_of(&answer["children"][0]["load_us"])?);
    drop((waiting, busy));

    let sleeper = rig.sleeper()?;
    let mut idle = clonable()?;
    idle.put("/machine-config", &machine)?;
    idle.put("/boot-source", &json!({"kernel_image_path": sleeper}))?;
    idle.put("/actions", &json!({"action_type": "InstanceStart"}))?;
    let waiting = Waiting::start(subject, rig, 1)?;
    // Those who wait prepare themselves.
    std::thread::sleep(Duration::from_millis(20));
    let (_, answer) = waiting.become_clones_of(&mut idle)?;
    let one = ms_of(&answer["children"][0]["load_us"])?;
    drop((waiting, idle));

    let mut parent = clonable()?;
    parent.put("/machine-config", &machine)?;
    parent.put("/boot-source", &json!({"kernel_image_path": sleeper}))?;
    parent.put("/actions", &json!({"action_type": "InstanceStart"}))?;
    let begun = Instant::now();
    let waiting = Waiting::start(subject, rig, MANY_CLONES)?;
    let (call, _) = waiting.become_clones_of(&mut parent)?;
    let many = begun.elapsed();
    let private = waiting.vms.iter().map(private_mib).sum::<Result<f64>>()? / MANY_CLONES as f64;
    Ok(vec![(&PAUSE, pause), (&CHILD, child), (&IDLE, one), (&MANY, ms(many)), (&CALL, ms(call)), (&PRIVATE, private)])
}

/// Memory of a process that no other one shares.
fn private_mib(vm: &Vm) -> Result<f64> {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.pid()))?;
    let kib = |name: &str| -> Result<f64> {
        let line = maps.lines().find_map(|line| line.strip_prefix(name)).context("a line of smaps_rollup")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok((kib("Private_Dirty:")? + kib("Private_Clean:")?) / 1024.0)
}
