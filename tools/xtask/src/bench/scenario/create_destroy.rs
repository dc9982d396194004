//! How many VMs a second can be made, booted to their first words, and destroyed, one after another.

use std::time::Instant;

use anyhow::Result;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{Rig, Subject};
use super::{Scenario, ms};

static RATE: Metric = Metric::higher("create + start + destroy", "VM/s");
static KILL: Metric = Metric::lower("kill → reaped, at first output", "ms");

pub(crate) const CYCLES: Scenario = Scenario {
    name: "rate",
    metrics: &[&RATE, &KILL],
    rounds: Rounds { wanted: 10, warm_up: 1 },
    sample: cycles,
    needs_network: false,
};

fn cycles(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let count = if rig.quick { 3 } else { 20 };
    let disk = rig.disk("start.img", 1)?;
    let mut killing = 0.0;
    let start = Instant::now();
    for _ in 0..count {
        let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
        vm.drive("disk", &disk, "Sync")?;
        vm.start()?;
        killing += ms(vm.kill()?);
    }
    let count = f64::from(count);
    Ok(vec![(&RATE, count / start.elapsed().as_secs_f64()), (&KILL, killing / count)])
}
