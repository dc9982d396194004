use std::path::PathBuf;

use super::{Answer, Overrides, Submit};
use crate::actor::Vmm;
use crate::config::InstanceId;
use crate::lifecycle::Ask;
use crate::snapshot::Became;

/// Most clones that are made at once.
pub const MAX_CHILDREN: usize = 256;

/// A process that waits to be a clone, and what is to be otherwise there.
#[derive(Debug)]
pub struct Child {
    /// Where it waits.
    pub socket: PathBuf,
    /// Its machine's name.
    pub id: Option<InstanceId>,
    /// What it has that the original has not. Guest memory is what it is: `huge_pages` says nothing here.
    pub overrides: Overrides,
}

/// What all of them are told.
#[derive(Debug)]
pub struct HowToClone {
    /// Who becomes a clone.
    pub children: Vec<Child>,
    /// Go on at once.
    pub resume: bool,
    /// Log written pages.
    pub track_dirty_pages: bool,
    /// Guests' clocks go on from the time of day.
    pub clock_realtime: bool,
}

/// Makes clones of the machine, which stands still for a moment at most.
#[derive(Debug)]
pub struct CloneMachine(pub HowToClone);

/// Makes clones of a saved machine, which has nothing to do with that of this process, if there is any.
#[derive(Debug)]
pub struct CloneSnapshot {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// The memory file.
    pub mem_file_path: PathBuf,
    /// A host that lacks what the guest has been told of will do.
    pub force: bool,
    /// The rest.
    pub how: HowToClone,
}

/// Reply to both.
#[derive(Debug)]
pub struct Clones {
    /// How long the machine stood still, in microseconds; 0 if it did before.
    pub pause_us: u64,
    /// Guest memory in bytes, which clones share as far as they do not write it.
    pub memory_bytes: u64,
    /// How much of it was copied for them.
    pub copied_bytes: u64,
    /// What came of each, in the order of the request.
    pub children: Vec<Cloned>,
}

/// What came of a clone.
#[derive(Debug)]
pub struct Cloned {
    /// Where it waited.
    pub socket: PathBuf,
    /// How it became the machine, or why it did not.
    pub outcome: Result<Became, String>,
}

impl Submit for CloneMachine {
    type Reply = Clones;
    const ASK: Ask = Ask::Clone;

    fn begin(self, vmm: &mut Vmm, answer: Answer<Clones>) {
        vmm.clone_machine(self.0, answer);
    }
}

impl Submit for CloneSnapshot {
    type Reply = Clones;
    const ASK: Ask = Ask::Tell;

    fn begin(self, vmm: &mut Vmm, answer: Answer<Clones>) {
        vmm.clone_snapshot(self, answer);
    }
}
