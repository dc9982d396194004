//! `PUT`, `PATCH`, `DELETE /network-interfaces/{id}`.

use vmm::Ask;
use vmm::config::NetConfig;
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
    call.refuse_later(net.later(), Ask::Configure).await?;
    call.app.ask(PutNet(NetConfig::try_from(net)?)).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let patch: NetPatch = call.json()?;
    same_id(id.as_str(), &patch.iface_id)?;
    call.refuse_later(patch.later(), Ask::Reconfigure).await?;
    call.app.ask(PatchNet(id)).await?;
    DONE
}

pub(super) async fn delete(call: &Call<'_>) -> Result<Reply, Fault> {
    call.id()?;
    call.app.permit(Ask::Reconfigure).await?;
    // Only PCI devices can be unplugged, and this version has none.
    Err(Fault::bad_request("PCI is not enabled"))
}
