use std::path::PathBuf;

use serde::Deserialize;
use vmm::config::{HugePages, ResourceId};
use vmm::requests::{CreateSnapshot, LoadSnapshot, MemoryBackend, SnapshotKind};
use vmm::{Error, Subject};

use super::object::object;

/// Body of `PUT /snapshot/create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotCreate {
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}

/// What a snapshot holds.
#[derive(Debug, Default, Deserialize)]
pub(crate) enum SnapshotType {
    Diff,
    #[default]
    Full,
}

/// Body of `PUT /snapshot/load`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotLoad {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) mem_backend: Option<MemBackend>,
    /// An older name of `track_dirty_pages`.
    #[serde(default)]
    pub(crate) enable_diff_snapshots: bool,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) resume_vm: bool,
    #[serde(default)]
    pub(crate) network_overrides: Vec<NetworkOverride>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) vsock_override: Option<VsockOverride>,
    #[serde(default)]
    pub(crate) clock_realtime: bool,
    #[serde(default)]
    pub(crate) huge_pages: SnapshotHugePages,
}

/// Where guest memory comes from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemBackend {
    pub(crate) backend_path: PathBuf,
    pub(crate) backend_type: MemBackendType,
}

/// Whether [`MemBackend`] names a file or the socket of a page-fault handler.
#[derive(Debug, Deserialize)]
pub(crate) enum MemBackendType {
    File,
    Uffd,
}

/// Another tap for an interface.
#[derive(Debug, Deserialize)]
pub(crate) struct NetworkOverride {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

/// Another host socket for the socket device.
#[derive(Debug, Deserialize)]
pub(crate) struct VsockOverride {
    pub(crate) uds_path: PathBuf,
}

/// Page size behind guest memory: as it was, or another one.
#[derive(Debug, Default, Deserialize)]
pub(crate) enum SnapshotHugePages {
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Huge2M,
}

impl From<SnapshotCreate> for CreateSnapshot {
    fn from(create: SnapshotCreate) -> Self {
        let SnapshotCreate { snapshot_type, snapshot_path, mem_file_path } = create;
        let kind = match snapshot_type {
            SnapshotType::Full => SnapshotKind::Full,
            SnapshotType::Diff => SnapshotKind::Diff,
        };
        Self { kind, snapshot_path, mem_file_path }
    }
}

impl TryFrom<SnapshotLoad> for LoadSnapshot {
    type Error = Error;

    fn try_from(load: SnapshotLoad) -> Result<Self, Error> {
        let refuse = |what: String| Error::invalid(Subject::LoadSnapshot, what);
        let memory = match (load.mem_backend, load.mem_file_path) {
            (Some(MemBackend { backend_type: MemBackendType::File, backend_path }), _) => {
                MemoryBackend::File(backend_path)
            }
            (Some(MemBackend { backend_type: MemBackendType::Uffd, backend_path }), _) => {
                MemoryBackend::Handler(backend_path)
            }
            (None, Some(path)) => MemoryBackend::File(path),
            (None, None) => return Err(refuse("there is no memory".to_owned())),
        };
        let tap = |net: NetworkOverride| {
            let id = ResourceId::try_from(net.iface_id.as_str());
            Ok((
                id.map_err(|e| refuse(format!("network_overrides: iface_id {:?}: {e}", net.iface_id)))?,
                net.host_dev_name,
            ))
        };
        Ok(Self {
            snapshot_path: load.snapshot_path,
            memory,
            track_dirty_pages: load.track_dirty_pages || load.enable_diff_snapshots,
            resume: load.resume_vm,
            clock_realtime: load.clock_realtime,
            taps: load.network_overrides.into_iter().map(tap).collect::<Result<_, Error>>()?,
            uds_path: load.vsock_override.map(|vsock| vsock.uds_path),
            huge_pages: match load.huge_pages {
                SnapshotHugePages::Snapshot => None,
                SnapshotHugePages::None => Some(HugePages::None),
                SnapshotHugePages::Transparent => Some(HugePages::Transparent),
                SnapshotHugePages::Huge2M => Some(HugePages::Hugetlbfs2M),
            },
            or_end: false,
        })
    }
}

impl SnapshotLoad {
    /// Whether a deprecated field was sent.
    pub(crate) fn deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots
    }

    /// What is wrong with the memory that it names, in the contract's words.
    pub(crate) fn check_memory(&self) -> Result<(), &'static str> {
        match (&self.mem_backend, &self.mem_file_path) {
            (None, None) => Err("missing field: either `mem_backend` or `mem_file_path` is required"),
            (Some(_), Some(_)) => {
                Err("too many fields: either `mem_backend` or `mem_file_path` exclusively is required.")
            }
            _ => Ok(()),
        }
    }
}
