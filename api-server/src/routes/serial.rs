//! `PUT /serial`.

use vmm::requests::PutSerial;

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::Serial;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let serial: Serial = call.json()?;
    call.app.ask(PutSerial(serial.into())).await?;
    DONE
}
