//! `PUT /snapshot/create` and `PUT /snapshot/load`: understood, judged by the machine's phase, and refused by this version.

use vmm::Ask;

use super::{Call, Reply};
use crate::error::Fault;
use crate::wire::{Later, SnapshotCreate, SnapshotLoad};

pub(super) async fn create(call: &Call<'_>) -> Result<Reply, Fault> {
    let _: SnapshotCreate = call.json()?;
    call.app.permit(Ask::Act).await?;
    Err(Later("PUT /snapshot/create").into())
}

pub(super) async fn load(call: &Call<'_>) -> Result<Reply, Fault> {
    let load: SnapshotLoad = call.json()?;
    call.deprecate_if(load.deprecated());
    load.check_memory().map_err(Fault::bad_request)?;
    call.app.permit(Ask::Configure).await?;
    Err(Later("PUT /snapshot/load").into())
}
