//! `PUT /cpu-config`.

use vmm::requests::PutCpuConfig;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::CpuConfig;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let template: CpuConfig = call.json()?;
    call.app.ask(PutCpuConfig(template.into())).await?;
    DONE
}
