use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::RateLimits;
use vmm::config::{self, DriveConfig, ResourceId};
use vmm::{Error, Subject};

use super::Later;
use super::rate_limiter::RateLimiter;

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
    #[serde(serialize_with = "serialize_none")]
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) io_engine: Option<IoEngine>,
    pub(crate) socket: Option<PathBuf>,
}

/// Body of `PATCH /drives/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrivePatch {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: Option<PathBuf>,
    pub(crate) rate_limiter: Option<RateLimiter>,
}

/// A limiter that limits nothing is all that can be set, and it is echoed as none at all.
pub(super) fn serialize_none<S: serde::Serializer>(_: &Option<RateLimiter>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_none()
}

/// Whether a limiter is there and limits.
pub(super) fn limits(limiter: &Option<RateLimiter>) -> bool {
    limiter.as_ref().is_some_and(RateLimiter::limits)
}

impl Drive {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        if self.socket.is_some() {
            Some(Later("socket (a vhost-user drive)"))
        } else {
            limits(&self.rate_limiter).then_some(Later("rate_limiter"))
        }
    }
}

impl DrivePatch {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        limits(&self.rate_limiter).then_some(Later("rate_limiter"))
    }
}

impl TryFrom<Drive> for DriveConfig {
    type Error = Error;

    fn try_from(wire: Drive) -> Result<Self, Error> {
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
            rate_limiter: RateLimits::default(),
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
            rate_limiter: None,
            io_engine: Some(match config.io_engine {
                config::IoEngine::Sync => IoEngine::Sync,
                config::IoEngine::Async => IoEngine::Async,
            }),
            socket: None,
        }
    }
}
