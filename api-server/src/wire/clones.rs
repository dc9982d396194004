use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vmm::config::InstanceId;
use vmm::requests::{Child, CloneSnapshot, Clones, HowToClone};
use vmm::{Error, Subject};

use super::object::object;
use super::serial::Serial;
use super::snapshot::{OtherDrive, OtherNet, OtherPmem, OtherVsock, Others};

/// Body of `POST /clones`, which is not v1's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeClones {
    pub(crate) children: Vec<CloneChild>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) snapshot: Option<ClonedSnapshot>,
    #[serde(default = "yes")]
    pub(crate) resume_vm: bool,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) clock_realtime: bool,
}

fn yes() -> bool {
    true
}

/// A process that waits to be a clone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloneChild {
    pub(crate) socket: PathBuf,
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) drives: Vec<OtherDrive>,
    #[serde(default)]
    pub(crate) pmem: Vec<OtherPmem>,
    #[serde(default)]
    pub(crate) network_interfaces: Vec<OtherNet>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) vsock: Option<OtherVsock>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) serial: Option<Serial>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) mmds: Option<Map<String, Value>>,
}

/// What is cloned instead of the machine of this process.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClonedSnapshot {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
    #[serde(default)]
    pub(crate) force: bool,
}

/// Reply to `POST /clones`.
#[derive(Debug, Serialize)]
pub(crate) struct MadeClones {
    pause_us: u64,
    memory_bytes: u64,
    copied_bytes: u64,
    children: Vec<ClonedChild>,
}

/// What came of one of them.
#[derive(Debug, Serialize)]
struct ClonedChild {
    socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<Clones> for MadeClones {
    fn from(clones: Clones) -> Self {
        let child = |child: vmm::requests::Cloned| {
            let (became, error) = match child.outcome {
                Ok(became) => (Some(became), None),
                Err(why) => (None, Some(why)),
            };
            ClonedChild {
                socket: child.socket,
                load_us: became.map(|became| became.load_us),
                private_bytes: became.map(|became| became.private_bytes),
                error,
            }
        };
        let Clones { pause_us, memory_bytes, copied_bytes, children } = clones;
        Self { pause_us, memory_bytes, copied_bytes, children: children.into_iter().map(child).collect() }
    }
}

impl TryFrom<CloneChild> for Child {
    type Error = Error;

    fn try_from(child: CloneChild) -> Result<Self, Error> {
        let CloneChild { socket, id, drives, pmem, network_interfaces, vsock, serial, mmds } = child;
        let others = Others { drives, pmem, network_interfaces, vsock, serial, mmds };
        Ok(Self { id: instance_id(id).map_err(refuse)?, overrides: others.check().map_err(refuse)?, socket })
    }
}

/// A machine's name.
pub(super) fn instance_id(id: Option<String>) -> Result<Option<InstanceId>, String> {
    id.map(|id| InstanceId::try_from(id.as_str()).map_err(|e| format!("id {id:?}: {e}"))).transpose()
}

fn refuse(what: String) -> Error {
    Error::invalid(Subject::Clone, what)
}

impl MakeClones {
    /// What is to be done, with the machine of this process or with a snapshot.
    pub(crate) fn check(self) -> Result<(Option<ClonedSnapshot>, HowToClone), Error> {
        let Self { children, snapshot, resume_vm, track_dirty_pages, clock_realtime } = self;
        let child = |(at, child): (usize, CloneChild)| {
            Child::try_from(child).map_err(|e: Error| refuse(format!("children[{at}]: {}", e.what())))
        };
        let children = children.into_iter().enumerate().map(child).collect::<Result<_, Error>>()?;
        Ok((snapshot, HowToClone { children, resume: resume_vm, track_dirty_pages, clock_realtime }))
    }
}

impl ClonedSnapshot {
    /// Clones of it.
    pub(crate) fn cloned(self, how: HowToClone) -> CloneSnapshot {
        let Self { snapshot_path, mem_file_path, force } = self;
        CloneSnapshot { snapshot_path, mem_file_path, force, how }
    }
}
