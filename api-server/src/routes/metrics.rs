//! `PUT /metrics`.

use vmm::Ask;
use vmm::requests::GetInstance;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::metrics;
use crate::wire::Metrics;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let options: Metrics = call.json()?;
    call.app.permit(Ask::Configure).await?;
    let id = call.app.ask(GetInstance).await?.id;
    metrics::configure(options, id.as_str()).map_err(|e| Fault::bad_request(format!("Metrics error: {e}")))?;
    DONE
}
