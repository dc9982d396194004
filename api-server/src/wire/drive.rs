use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{self, DriveConfig, RateLimitChange, ResourceId};
use vmm::{Error, Kind, Subject};

use super::later;
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

/// A vhost-user drive: its back end decides what a file's drive is told here.
fn refuse_socket(drive: &Drive) -> Error {
    let foreign = [
        ("path_on_host", drive.path_on_host.is_some()),
        ("is_read_only", drive.is_read_only.is_some()),
        ("rate_limiter", drive.rate_limiter.is_some()),
        ("io_engine", drive.io_engine.is_some()),
        ("num_queues", drive.num_queues.is_some()),
    ];
    match foreign.into_iter().find(|(_, there)| *there) {
        Some((field, _)) => {
            Error::invalid(Subject::Drive, format!("socket and {field} exclude each other: leave one of them out."))
        }
        None => Error::new(Kind::Unsupported, Subject::None, later("socket (a vhost-user drive)")),
    }
}

impl TryFrom<Drive> for DriveConfig {
    type Error = Error;

    fn try_from(wire: Drive) -> Result<Self, Error> {
        if wire.socket.is_some() {
            return Err(refuse_socket(&wire));
        }
        let Some(path_on_host) = wire.path_on_host else {
            return Err(Error::invalid(Subject::Drive, "path_on_host is missing: name the file or block device."));
        };
        Ok(Self {
            id: ResourceId::try_from(wire.drive_id.as_str()).map_err(|e| Error::invalid(Subject::None, e))?,
            path_on_host,
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
        Self {
            drive_id: config.id.as_str().to_owned(),
            partuuid: config.partuuid,
            is_root_device: config.is_root_device,
            cache_type: match config.cache_type {
                config::CacheType::Unsafe => CacheType::Unsafe,
                config::CacheType::Writeback => CacheType::Writeback,
            },
            is_read_only: Some(config.is_read_only),
            path_on_host: Some(config.path_on_host),
            rate_limiter: rate_limiter::echo(config.rate_limiter),
            io_engine: Some(match config.io_engine {
                config::IoEngine::Sync => IoEngine::Sync,
                config::IoEngine::Async => IoEngine::Async,
            }),
            socket: None,
            num_queues: config.num_queues.map(|count| count.get().into()),
        }
    }
}
