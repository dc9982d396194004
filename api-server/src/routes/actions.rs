//! `PUT /actions`.

use vmm::Ask;
use vmm::requests::{SendCtrlAltDel, Start};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Action, ActionType, Later};

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    match call.json::<Action>()?.action_type {
        ActionType::InstanceStart => call.app.ask(Start).await?,
        ActionType::SendCtrlAltDel => call.app.ask(SendCtrlAltDel).await?,
        // There is no metrics file to flush to, and to answer 204 would be to say that there is.
        ActionType::FlushMetrics => call.refuse_later(Some(Later("FlushMetrics")), Ask::Act).await?,
    }
    DONE
}
