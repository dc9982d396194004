//! `PUT /boot-source`.

use vmm::requests::PutBootSource;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::BootSource;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let source: BootSource = call.json()?;
    call.app.ask(PutBootSource(source.into())).await?;
    DONE
}
