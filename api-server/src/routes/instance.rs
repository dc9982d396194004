//! `GET /`, `GET /version`, `GET /vm/config`.

use vmm::requests::{GetConfig, GetInstance};

use super::{Call, Reply, found};
use crate::error::Fault;
use crate::wire::{FullConfig, InstanceInfo, Version};

pub(super) async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let info = call.app.ask(GetInstance).await?;
    let who = call.app.identity();
    found(&InstanceInfo::new(info.id.to_string(), info.phase, who.version(), who.name()))
}

pub(super) async fn get_version(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&Version { firecracker_version: call.app.identity().version() })
}

pub(super) async fn get_config(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&FullConfig::from(call.app.ask(GetConfig).await?))
}
