//! `PATCH /vm`.

use std::time::Instant;

use vmm::requests::{Pause, Resume};
use vmm::telemetry::LATENCIES;

use super::{Call, DONE, Reply, took};
use crate::error::Fault;
use crate::wire::{Vm, VmState};

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let asked = call.json::<Vm>()?.state;
    let started = Instant::now();
    let (name, latency) = match asked {
        VmState::Paused => {
            call.app.ask(Pause).await?;
            ("pause vm", &LATENCIES.pause_vm)
        }
        VmState::Resumed => {
            call.app.ask(Resume).await?;
            ("resume vm", &LATENCIES.resume_vm)
        }
    };
    took(name, started, latency);
    DONE
}
