//! `PATCH /vm`.

use std::time::Instant;

use log::info;
use vmm::requests::{Pause, Resume};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Vm, VmState};

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let asked = call.json::<Vm>()?.state;
    let started = Instant::now();
    let name = match asked {
        VmState::Paused => {
            call.app.ask(Pause).await?;
            "pause vm"
        }
        VmState::Resumed => {
            call.app.ask(Resume).await?;
            "resume vm"
        }
    };
    info!("'{name}' API request took {} us.", started.elapsed().as_micros());
    DONE
}
