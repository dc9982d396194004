//! `PATCH /vm`.

use std::time::Instant;

use log::info;
use vmm::requests::{Pause, Resume};
use vmm::telemetry::{LATENCIES, microseconds};

use super::{Call, DONE, Reply};
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
    let took_us = microseconds(started.elapsed());
    latency.set(took_us);
    info!("'{name}' API request took {took_us} us.");
    DONE
}
