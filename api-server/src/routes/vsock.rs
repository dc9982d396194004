//! `PUT /vsock`.

use vmm::Ask;
use vmm::config::VsockConfig;
use vmm::requests::PutVsock;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::Vsock;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let vsock: Vsock = call.json()?;
    call.deprecate_if(vsock.deprecated());
    let vsock = call.valid(VsockConfig::try_from(vsock), Ask::Configure).await?;
    call.app.ask(PutVsock(vsock)).await?;
    DONE
}
