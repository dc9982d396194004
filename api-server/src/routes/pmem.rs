//! `PUT`, `PATCH`, `DELETE /pmem/{id}`.

use vmm::Ask;
use vmm::config::PmemConfig;
use vmm::machine::DeviceName;
use vmm::requests::{PatchPmem, PutPmem};

use super::drives::same_id;
use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Pmem, PmemPatch};

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let pmem: Pmem = call.json()?;
    same_id(id.as_str(), &pmem.id)?;
    let pmem = call.valid(PmemConfig::try_from(pmem), Ask::Plug).await?;
    call.app.ask(PutPmem(pmem)).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let patch: PmemPatch = call.json()?;
    same_id(id.as_str(), &patch.id)?;
    call.app.ask(PatchPmem { id, rate_limiter: patch.rate_limits() }).await?;
    DONE
}

pub(super) async fn delete(call: &Call<'_>) -> Result<Reply, Fault> {
    call.unplug(DeviceName::Pmem).await
}
