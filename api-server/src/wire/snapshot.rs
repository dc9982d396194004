use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vmm::config::{HugePages, MacAddr, ResourceId};
use vmm::requests::{CreateSnapshot, LoadSnapshot, MemoryBackend, NetOverride, Overrides, SnapshotKind, VsockOverride};
use vmm::{Error, Subject};

use super::clones::instance_id;
use super::object::{needed, object};
use super::serial::Serial;

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

/// Reply of `GET /snapshot/progress`.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotProgress {
    writing: bool,
    bytes_done: Option<u64>,
    bytes_total: Option<u64>,
}

impl From<Option<vmm::requests::SnapshotProgress>> for SnapshotProgress {
    fn from(progress: Option<vmm::requests::SnapshotProgress>) -> Self {
        Self {
            writing: progress.is_some(),
            bytes_done: progress.map(|progress| progress.bytes_done),
            bytes_total: progress.map(|progress| progress.bytes_total),
        }
    }
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
    pub(crate) network_overrides: Vec<OtherTap>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) vsock_override: Option<OtherSocket>,
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
pub(crate) struct OtherTap {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

/// Another host socket for the socket device.
#[derive(Debug, Deserialize)]
pub(crate) struct OtherSocket {
    pub(crate) uds_path: PathBuf,
}

/// Body of `PUT /snapshot/restore`, which is not v1's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotRestore {
    pub(crate) snapshot_path: PathBuf,
    #[serde(deserialize_with = "needed")]
    pub(crate) mem_backend: MemBackend,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) resume_vm: bool,
    #[serde(default)]
    pub(crate) clock_realtime: bool,
    #[serde(default)]
    pub(crate) force: bool,
    pub(crate) id: Option<String>,
    pub(crate) working_set_path: Option<PathBuf>,
    #[serde(default)]
    pub(crate) huge_pages: SnapshotHugePages,
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

/// Another file behind a drive.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtherDrive {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: PathBuf,
}

/// Another file behind a pmem device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtherPmem {
    pub(crate) id: String,
    pub(crate) path_on_host: PathBuf,
}

/// Another tap and address for an interface.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtherNet {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: Option<String>,
    pub(crate) guest_mac: Option<String>,
}

/// Another address and host socket for the socket device.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtherVsock {
    pub(crate) guest_cid: Option<u32>,
    pub(crate) uds_path: Option<PathBuf>,
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
        let memory = match (load.mem_backend, load.mem_file_path) {
            (Some(backend), _) => backend.into(),
            (None, Some(path)) => MemoryBackend::File(path),
            (None, None) => return Err(refuse("there is no memory".to_owned())),
        };
        let tap = |net: OtherTap| {
            let id = known_id("network_overrides: iface_id", &net.iface_id).map_err(refuse)?;
            Ok(NetOverride { id, host_dev_name: Some(net.host_dev_name), guest_mac: None })
        };
        Ok(Self {
            snapshot_path: load.snapshot_path,
            memory,
            track_dirty_pages: load.track_dirty_pages || load.enable_diff_snapshots,
            id: None,
            working_set_path: None,
            resume: load.resume_vm,
            clock_realtime: load.clock_realtime,
            force: false,
            overrides: Overrides {
                nets: load.network_overrides.into_iter().map(tap).collect::<Result<_, Error>>()?,
                vsock: VsockOverride { guest_cid: None, uds_path: load.vsock_override.map(|vsock| vsock.uds_path) },
                huge_pages: load.huge_pages.chosen(),
                ..Overrides::default()
            },
            or_end: false,
        })
    }
}

impl TryFrom<SnapshotRestore> for LoadSnapshot {
    type Error = Error;

    fn try_from(restore: SnapshotRestore) -> Result<Self, Error> {
        let SnapshotRestore { drives, pmem, network_interfaces, vsock, serial, mmds, .. } = restore;
        let others = Others { drives, pmem, network_interfaces, vsock, serial, mmds };
        Ok(Self {
            snapshot_path: restore.snapshot_path,
            memory: restore.mem_backend.into(),
            track_dirty_pages: restore.track_dirty_pages,
            id: instance_id(restore.id).map_err(refuse)?,
            working_set_path: restore.working_set_path,
            resume: restore.resume_vm,
            clock_realtime: restore.clock_realtime,
            force: restore.force,
            overrides: Overrides { huge_pages: restore.huge_pages.chosen(), ..others.check().map_err(refuse)? },
            or_end: false,
        })
    }
}

/// What a machine is to have that it did not have.
pub(super) struct Others {
    pub(super) drives: Vec<OtherDrive>,
    pub(super) pmem: Vec<OtherPmem>,
    pub(super) network_interfaces: Vec<OtherNet>,
    pub(super) vsock: Option<OtherVsock>,
    pub(super) serial: Option<Serial>,
    pub(super) mmds: Option<Map<String, Value>>,
}

impl Others {
    /// The same, well formed.
    pub(super) fn check(self) -> Result<Overrides, String> {
        let drive = |drive: OtherDrive| Ok((known_id("drives: drive_id", &drive.drive_id)?, drive.path_on_host));
        let pmem = |pmem: OtherPmem| Ok((known_id("pmem: id", &pmem.id)?, pmem.path_on_host));
        let net = |net: OtherNet| {
            let mac = net.guest_mac.as_deref().map(MacAddr::try_from).transpose();
            Ok(NetOverride {
                id: known_id("network_interfaces: iface_id", &net.iface_id)?,
                host_dev_name: net.host_dev_name,
                guest_mac: mac.map_err(|e| format!("network_interfaces: guest_mac: {e}"))?,
            })
        };
        let vsock = self.vsock.unwrap_or_default();
        Ok(Overrides {
            drives: self.drives.into_iter().map(drive).collect::<Result<_, String>>()?,
            pmems: self.pmem.into_iter().map(pmem).collect::<Result<_, String>>()?,
            nets: self.network_interfaces.into_iter().map(net).collect::<Result<_, String>>()?,
            vsock: VsockOverride { guest_cid: vsock.guest_cid, uds_path: vsock.uds_path },
            serial: self.serial.map(Into::into),
            mmds: self.mmds.map(Into::into),
            huge_pages: None,
        })
    }
}

fn refuse(what: String) -> Error {
    Error::invalid(Subject::LoadSnapshot, what)
}

fn known_id(field: &str, id: &str) -> Result<ResourceId, String> {
    ResourceId::try_from(id).map_err(|e| format!("{field} {id:?}: {e}"))
}

impl From<MemBackend> for MemoryBackend {
    fn from(wire: MemBackend) -> Self {
        match wire.backend_type {
            MemBackendType::File => Self::File(wire.backend_path),
            MemBackendType::Uffd => Self::Handler(wire.backend_path),
        }
    }
}

impl SnapshotHugePages {
    /// Another page size than it was.
    fn chosen(self) -> Option<HugePages> {
        match self {
            Self::Snapshot => None,
            Self::None => Some(HugePages::None),
            Self::Transparent => Some(HugePages::Transparent),
            Self::Huge2M => Some(HugePages::Hugetlbfs2M),
        }
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
