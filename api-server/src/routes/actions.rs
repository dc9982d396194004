//! `PUT /actions`.

use vmm::requests::{FlushMetrics, SendCtrlAltDel, Start};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Action, ActionType};

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    match call.json::<Action>()?.action_type {
        ActionType::InstanceStart => call.app.ask(Start).await?,
        ActionType::SendCtrlAltDel => call.app.ask(SendCtrlAltDel).await?,
        ActionType::FlushMetrics => call.app.ask(FlushMetrics).await?,
    }
    DONE
}
