use std::path::PathBuf;

use super::{Answer, Request, Submit};
use crate::actor::Vmm;
use crate::config::{HugePages, ResourceId};
use crate::error::Error;
use crate::lifecycle::Ask;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of memory.
    Full,
    /// What changed since the last snapshot.
    Diff,
}

/// Writes state and memory of a machine that stands still. Files take their time: meanwhile the machine stays as it is, and everyone who does
/// not want to change it is served.
#[derive(Debug)]
pub struct CreateSnapshot {
    /// How much of memory.
    pub kind: SnapshotKind,
    /// The state file.
    pub snapshot_path: PathBuf,
    /// The memory file.
    pub mem_file_path: PathBuf,
}

impl Submit for CreateSnapshot {
    type Reply = ();
    const ASK: Ask = Ask::Save;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.create_snapshot(self, answer);
    }
}

/// Where a saved machine's memory comes from.
#[derive(Debug)]
pub enum MemoryBackend {
    /// A file.
    File(PathBuf),
    /// A process that brings it page by page, by the path of its socket.
    Handler(PathBuf),
}

/// Builds the machine that a snapshot holds. The VMM has not been told anything yet that the snapshot brings along.
#[derive(Debug)]
pub struct LoadSnapshot {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// Where the memory is.
    pub memory: MemoryBackend,
    /// Log written pages, for differential snapshots.
    pub track_dirty_pages: bool,
    /// Let it run.
    pub resume: bool,
    /// The guest's clock goes on from the time of day.
    pub clock_realtime: bool,
    /// Other taps for these interfaces.
    pub taps: Vec<(ResourceId, String)>,
    /// Another host socket for the socket device.
    pub uds_path: Option<PathBuf>,
    /// Another page size behind guest memory.
    pub huge_pages: Option<HugePages>,
    /// End the process if it fails, as v1 does.
    pub or_end: bool,
}

impl Request for LoadSnapshot {
    type Reply = ();
    const ASK: Ask = Ask::Load;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.load_snapshot(self)
    }
}
