//! `PUT /logger`.

use vmm::Ask;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::logger;
use crate::wire::Logger;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let options: Logger = call.json()?;
    call.app.permit(Ask::Configure).await?;
    logger::configure(options).map_err(|e| Fault::bad_request(format!("Logger error: {e}")))?;
    DONE
}
