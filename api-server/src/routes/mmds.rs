//! `GET`, `PUT`, `PATCH /mmds` and `PUT /mmds/config`.

use serde_json::{Map, Value};
use vmm::Ask;
use vmm::requests::{GetMmds, PatchMmds, PutMmds, PutMmdsConfig};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::MmdsConfig;

pub(super) async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    Ok(Some(call.app.ask(GetMmds).await?.to_vec()))
}

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let object: Map<String, Value> = call.json()?;
    call.app.ask(PutMmds(object.into())).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let object: Map<String, Value> = call.json()?;
    call.app.ask(PatchMmds(object.into())).await?;
    DONE
}

pub(super) async fn put_config(call: &Call<'_>) -> Result<Reply, Fault> {
    let config: MmdsConfig = call.json()?;
    call.deprecate_if(config.deprecated());
    let config = call.valid(config.try_into(), Ask::Configure).await?;
    call.app.ask(PutMmdsConfig(config)).await?;
    DONE
}
