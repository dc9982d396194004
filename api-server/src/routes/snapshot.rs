use std::time::Instant;

use vmm::Ask;
use vmm::requests::{CreateSnapshot, LoadSnapshot, SnapshotKind};
use vmm::telemetry::{LATENCIES, microseconds};

use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::identity::Identity;
use crate::wire::{SnapshotCreate, SnapshotLoad};

pub(super) async fn create(call: &Call<'_>) -> Result<Reply, Fault> {
    let create: SnapshotCreate = call.json()?;
    let create = CreateSnapshot::from(create);
    let (what, latency) = match create.kind {
        SnapshotKind::Full => ("create full snapshot", &LATENCIES.full_create_snapshot),
        SnapshotKind::Diff => ("create diff snapshot", &LATENCIES.diff_create_snapshot),
    };
    let asked = Instant::now();
    call.app.ask(create).await?;
    let took_us = microseconds(asked.elapsed());
    latency.set(took_us);
    log::info!("'{what}' API request took {took_us} us.");
    DONE
}

pub(super) async fn load(call: &Call<'_>) -> Result<Reply, Fault> {
    let load: SnapshotLoad = call.json()?;
    call.deprecate_if(load.deprecated());
    load.check_memory().map_err(Fault::bad_request)?;
    let mut load = call.valid(LoadSnapshot::try_from(load), Ask::Load).await?;
    // Whoever expects v1's monitor waits for the end of the process.
    load.or_end = call.app.identity() == Identity::Firecracker;
    let asked = Instant::now();
    call.app.ask(load).await?;
    let took_us = microseconds(asked.elapsed());
    LATENCIES.load_snapshot.set(took_us);
    log::info!("'load snapshot' API request took {took_us} us.");
    DONE
}
