//! `GET /confinement`. Answered by the thread that serves the API: the report is there for every thread to read.

use super::{Call, Reply, found};
use crate::wire::Confinement;

pub(super) async fn get(_call: &Call<'_>) -> Result<Reply, crate::error::Fault> {
    found(&Confinement::from(vmm::confine::report()))
}
