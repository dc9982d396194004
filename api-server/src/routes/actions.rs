//! `PUT /actions`.

use vmm::requests::{FlushMetrics, SendCtrlAltDel, Start};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::{Action, ActionType};

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    match call.json::<Action>()?.action_type {
        ActionType::InstanceStart => {
            call.app.ask(Start).await?;
            // From here on the guest may be hostile, and nothing here opens a file any more.
            if let Err(error) = call.app.fences().narrow() {
                log::error!("The API server stays less confined than it should be: {error}");
            }
        }
        ActionType::SendCtrlAltDel => call.app.ask(SendCtrlAltDel).await?,
        ActionType::FlushMetrics => call.app.ask(FlushMetrics).await?,
    }
    DONE
}
