//! `/snapshot/create`, `/snapshot/load`, and what v1 does not have: `/snapshot/restore` and `/snapshot/progress`.

use std::time::Instant;

use vmm::Ask;
use vmm::requests::{CancelSnapshot, CreateSnapshot, GetSnapshotProgress, LoadSnapshot, SnapshotKind};
use vmm::telemetry::LATENCIES;

use super::{Call, DONE, Reply, found, took};
use crate::error::Fault;
use crate::identity::Identity;
use crate::wire::{SnapshotCreate, SnapshotLoad, SnapshotProgress, SnapshotRestore};

pub(super) async fn create(call: &Call<'_>) -> Result<Reply, Fault> {
    let create: SnapshotCreate = call.json()?;
    let create = CreateSnapshot::from(create);
    let (what, latency) = match create.kind {
        SnapshotKind::Full => ("create full snapshot", &LATENCIES.full_create_snapshot),
        SnapshotKind::Diff => ("create diff snapshot", &LATENCIES.diff_create_snapshot),
    };
    let asked = Instant::now();
    call.app.ask(create).await?;
    took(what, asked, latency);
    DONE
}

pub(super) async fn load(call: &Call<'_>) -> Result<Reply, Fault> {
    let load: SnapshotLoad = call.json()?;
    call.deprecate_if(load.deprecated());
    load.check_memory().map_err(Fault::bad_request)?;
    let mut load = call.valid(LoadSnapshot::try_from(load), Ask::Load).await?;
    // Whoever expects v1's monitor waits for the end of the process.
    load.or_end = call.app.identity() == Identity::Firecracker;
    ask(call, load).await
}

/// Not v1's: everything that a machine finds on its host may be another one than it was.
pub(super) async fn restore(call: &Call<'_>) -> Result<Reply, Fault> {
    let restore: SnapshotRestore = call.json()?;
    ask(call, call.valid(LoadSnapshot::try_from(restore), Ask::Load).await?).await
}

async fn ask(call: &Call<'_>, load: LoadSnapshot) -> Result<Reply, Fault> {
    let asked = Instant::now();
    call.app.ask(load).await?;
    took("load snapshot", asked, &LATENCIES.load_snapshot);
    DONE
}

pub(super) async fn progress(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&SnapshotProgress::from(call.app.ask(GetSnapshotProgress).await?))
}

pub(super) async fn cancel(call: &Call<'_>) -> Result<Reply, Fault> {
    call.app.ask(CancelSnapshot).await?;
    DONE
}
