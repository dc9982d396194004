use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{self, DriveBackend, DriveConfig, RateLimitChange, ResourceId};
use vmm::{Error, Subject};

use super::object::object;
use super::queues;
use super::rate_limiter::{self, RateLimiter};

/// When a guest's FLUSH reaches the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

/// How requests reach the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum IoEngine {
    Async,
    Sync,
}

/// Body of `PUT /drives/{id}`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    pub(crate) drive_id: String,
    pub(crate) partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(default)]
    pub(crate) cache_type: CacheType,
    pub(crate) is_read_only: Option<bool>,
    pub(crate) path_on_host: Option<PathBuf>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) io_engine: Option<IoEngine>,
    pub(crate) socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_queues: Option<u64>,
}

/// Body of `PATCH /drives/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrivePatch {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: Option<PathBuf>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

impl DrivePatch {
    /// What changes in the limiter, if it was mentioned at all.
    pub(crate) fn rate_limits(&self) -> Option<RateLimitChange> {
        self.rate_limiter.is_some().then(|| rate_limiter::change(self.rate_limiter))
    }
}

/// What is behind the drive. The back end of a vhost-user drive decides what a file's drive is told here.
fn backend(drive: &Drive) -> Result<DriveBackend, Error> {
    let refuse = |what: &str| Error::invalid(Subject::Drive, what);
    match (&drive.path_on_host, &drive.socket) {
        (Some(path), None) => Ok(DriveBackend::File(path.clone())),
        (None, None) => Err(refuse("path_on_host is missing: name the file or block device.")),
        (_, Some(socket)) => {
            let foreign = [
                ("path_on_host", drive.path_on_host.is_some()),
                ("is_read_only", drive.is_read_only.is_some()),
                ("rate_limiter", drive.rate_limiter.is_some()),
                ("io_engine", drive.io_engine.is_some()),
                ("num_queues", drive.num_queues.is_some()),
            ];
            match foreign.into_iter().find(|(_, there)| *there) {
                Some((field, _)) => {
                    Err(refuse(&format!("socket and {field} exclude each other: leave one of them out.")))
                }
                None => Ok(DriveBackend::Socket(socket.clone())),
            }
        }
    }
}

impl TryFrom<Drive> for DriveConfig {
    type Error = Error;

    fn try_from(wire: Drive) -> Result<Self, Error> {
        let backend = backend(&wire)?;
        Ok(Self {
            id: ResourceId::try_from(wire.drive_id.as_str()).map_err(|e| Error::invalid(Subject::None, e))?,
            backend,
            is_root_device: wire.is_root_device,
            partuuid: wire.partuuid,
            is_read_only: wire.is_read_only.unwrap_or(false),
            cache_type: match wire.cache_type {
                CacheType::Unsafe => config::CacheType::Unsafe,
                CacheType::Writeback => config::CacheType::Writeback,
            },
            io_engine: match wire.io_engine {
                None | Some(IoEngine::Sync) => config::IoEngine::Sync,
                Some(IoEngine::Async) => config::IoEngine::Async,
            },
            rate_limiter: rate_limiter::limits(wire.rate_limiter),
            num_queues: queues::count(wire.num_queues, Subject::Drive)?,
        })
    }
}

impl From<DriveConfig> for Drive {
    fn from(config: DriveConfig) -> Self {
        let (path_on_host, socket) = match config.backend {
            DriveBackend::File(path) => (Some(path), None),
            DriveBackend::Socket(socket) => (None, Some(socket)),
        };
        let file = path_on_host.is_some();
        Self {
            drive_id: config.id.as_str().to_owned(),
            partuuid: config.partuuid,
            is_root_device: config.is_root_device,
            cache_type: match config.cache_type {
                config::CacheType::Unsafe => CacheType::Unsafe,
                config::CacheType::Writeback => CacheType::Writeback,
            },
            is_read_only: file.then_some(config.is_read_only),
            path_on_host,
            rate_limiter: rate_limiter::echo(config.rate_limiter),
            io_engine: file.then_some(match config.io_engine {
                config::IoEngine::Sync => IoEngine::Sync,
                config::IoEngine::Async => IoEngine::Async,
            }),
            socket,
            num_queues: config.num_queues.map(|count| count.get().into()),
        }
    }
}
