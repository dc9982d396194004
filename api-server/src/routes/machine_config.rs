//! `GET`, `PUT`, `PATCH /machine-config`.

use vmm::Ask;
use vmm::requests::{GetMachineConfig, PatchMachineConfig, PutMachineConfig};

use super::{Call, DONE, Reply, found};
use crate::error::Fault;
use crate::wire::{MachineConfig, MachineConfigPatch};

pub(super) async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&MachineConfig::from(call.app.ask(GetMachineConfig).await?))
}

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let machine: MachineConfig = call.json()?;
    call.deprecate_if(machine.deprecated());
    call.refuse_later(machine.later(), Ask::Configure).await?;
    call.app.ask(PutMachineConfig(machine.into())).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let patch: MachineConfigPatch = call.json()?;
    call.deprecate_if(patch.deprecated());
    if patch.is_empty() {
        return Err(Fault::bad_request("Empty PATCH request."));
    }
    call.refuse_later(patch.later(), Ask::Configure).await?;
    call.app.ask(PatchMachineConfig(patch.into())).await?;
    DONE
}
