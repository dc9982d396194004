//! `PUT`, `PATCH`, `DELETE /network-interfaces/{id}`.

use vmm::Ask;
use vmm::config::NetConfig;
use vmm::machine::DeviceName;
use vmm::requests::{PatchNet, PutNet};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Net, NetPatch};

fn same_id(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::bad_request(format!("The id from the path [{path}] does not match the id from the body [{body}]!")))
    }
}

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let net: Net = call.json()?;
    same_id(id.as_str(), &net.iface_id)?;
    let net = call.valid(NetConfig::try_from(net), Ask::Plug).await?;
    call.app.ask(PutNet(net)).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let patch: NetPatch = call.json()?;
    same_id(id.as_str(), &patch.iface_id)?;
    let (rx_rate_limiter, tx_rate_limiter) = patch.rate_limits();
    call.app.ask(PatchNet { id, rx_rate_limiter, tx_rate_limiter }).await?;
    DONE
}

pub(super) async fn delete(call: &Call<'_>) -> Result<Reply, Fault> {
    call.unplug(DeviceName::Net).await
}
