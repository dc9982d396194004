//! `PUT`, `PATCH`, `DELETE /drives/{id}`.

use vmm::Ask;
use vmm::config::DriveConfig;
use vmm::machine::DeviceName;
use vmm::requests::{PatchDrive, PutDrive};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Drive, DrivePatch};

pub(super) fn same_id(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::bad_request("The id from the path does not match the id from the body!"))
    }
}

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let drive: Drive = call.json()?;
    same_id(id.as_str(), &drive.drive_id)?;
    let drive = call.valid(DriveConfig::try_from(drive), Ask::Plug).await?;
    call.app.ask(PutDrive(drive)).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let patch: DrivePatch = call.json()?;
    same_id(id.as_str(), &patch.drive_id)?;
    let rate_limiter = patch.rate_limits();
    call.app.ask(PatchDrive { id, path_on_host: patch.path_on_host, rate_limiter }).await?;
    DONE
}

pub(super) async fn delete(call: &Call<'_>) -> Result<Reply, Fault> {
    call.unplug(DeviceName::Drive).await
}
