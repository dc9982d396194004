//! `GET`, `PUT`, `PATCH /hotplug/memory`; `GET`, `PATCH /hotplug/vcpus`.

use vmm::Ask;
use vmm::config::MemoryHotplugConfig;
use vmm::requests::{GetMemoryHotplug, GetVcpus, PatchMemoryHotplug, PatchVcpus, PutMemoryHotplug};

use super::{Call, DONE, Reply, found};
use crate::error::Fault;
use crate::wire::{MemoryHotplug, MemoryHotplugPatch, MemoryHotplugState, Vcpus, VcpusPatch};

pub(super) async fn get_memory(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&MemoryHotplugState::from(call.app.ask(GetMemoryHotplug).await?))
}

pub(super) async fn put_memory(call: &Call<'_>) -> Result<Reply, Fault> {
    let memory: MemoryHotplug = call.json()?;
    let memory = call.valid(MemoryHotplugConfig::try_from(memory), Ask::Configure).await?;
    call.app.ask(PutMemoryHotplug(memory)).await?;
    DONE
}

pub(super) async fn patch_memory(call: &Call<'_>) -> Result<Reply, Fault> {
    let MemoryHotplugPatch { requested_size_mib } = call.json()?;
    call.app.ask(PatchMemoryHotplug { requested_size_mib }).await?;
    DONE
}

pub(super) async fn get_vcpus(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&Vcpus::from(call.app.ask(GetVcpus).await?))
}

pub(super) async fn patch_vcpus(call: &Call<'_>) -> Result<Reply, Fault> {
    let VcpusPatch { vcpu_count } = call.json()?;
    call.app.ask(PatchVcpus { vcpu_count }).await?;
    DONE
}
