use std::path::PathBuf;

use devices::mmds::Document;

use super::{Answer, Request, Submit};
use crate::actor::Vmm;
use crate::config::{HugePages, InstanceId, MacAddr, ResourceId, SerialConfig};
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

/// Asks how far the snapshot is that is being written.
#[derive(Debug)]
pub struct GetSnapshotProgress;

/// Reply to [`GetSnapshotProgress`]: bytes of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// Written, or known to be a hole.
    pub bytes_done: u64,
    /// All of it.
    pub bytes_total: u64,
}

impl Request for GetSnapshotProgress {
    type Reply = Option<SnapshotProgress>;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<Option<SnapshotProgress>, Error> {
        Ok(vmm.snapshot_progress())
    }
}

/// Gives up the snapshot that is being written: whoever asked for it gets a refusal, and the machine can go on.
#[derive(Debug)]
pub struct CancelSnapshot;

impl Request for CancelSnapshot {
    type Reply = ();
    const ASK: Ask = Ask::Tell;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.cancel_snapshot()
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

/// What a machine has that it did not have when it was saved.
#[derive(Debug, Default)]
pub struct Overrides {
    /// Other files behind these drives.
    pub drives: Vec<(ResourceId, PathBuf)>,
    /// Other files behind these pmem devices, as long as those were.
    pub pmems: Vec<(ResourceId, PathBuf)>,
    /// Other taps and addresses for these interfaces.
    pub nets: Vec<NetOverride>,
    /// Another address and host socket for the socket device.
    pub vsock: VsockOverride,
    /// Another console.
    pub serial: Option<SerialConfig>,
    /// What the metadata service says.
    pub mmds: Option<Document>,
    /// Another page size behind guest memory.
    pub huge_pages: Option<HugePages>,
}

/// Of an interface.
#[derive(Debug)]
pub struct NetOverride {
    /// Which one.
    pub id: ResourceId,
    /// Another tap.
    pub host_dev_name: Option<String>,
    /// Another address. A driver that is at work looks at it when it starts anew.
    pub guest_mac: Option<MacAddr>,
}

/// Of the socket device.
#[derive(Debug, Default)]
pub struct VsockOverride {
    /// Another address. Drivers look at it when they hear that their connections are gone, which they do.
    pub guest_cid: Option<u32>,
    /// Another host socket.
    pub uds_path: Option<PathBuf>,
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
    /// Another name.
    pub id: Option<InstanceId>,
    /// Where it is written which pages the guest wants first; if nothing is there, it will be.
    pub working_set_path: Option<PathBuf>,
    /// Let it run.
    pub resume: bool,
    /// The guest's clock goes on from the time of day.
    pub clock_realtime: bool,
    /// A host that lacks what the guest has been told of will do.
    pub force: bool,
    /// What is to be otherwise than it was.
    pub overrides: Overrides,
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
