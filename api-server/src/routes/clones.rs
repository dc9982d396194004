//! `/clones`, which v1 does not have.

use vmm::Ask;
use vmm::requests::CloneMachine;

use super::{Call, Reply, found};
use crate::error::Fault;
use crate::wire::{MadeClones, MakeClones};

pub(super) async fn post(call: &Call<'_>) -> Result<Reply, Fault> {
    let clone: MakeClones = call.json()?;
    let ask = if clone.snapshot.is_some() { Ask::Tell } else { Ask::Clone };
    let clones = match call.valid(clone.check(), ask).await? {
        (Some(snapshot), how) => call.app.ask(snapshot.cloned(how)).await?,
        (None, how) => call.app.ask(CloneMachine(how)).await?,
    };
    found(&MadeClones::from(clones))
}
