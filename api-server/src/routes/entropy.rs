//! `PUT /entropy`.

use vmm::requests::PutEntropy;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::Entropy;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let entropy: Entropy = call.json()?;
    call.app.ask(PutEntropy(entropy.into())).await?;
    DONE
}
