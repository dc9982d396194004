use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{PmemConfig, RateLimitChange, ResourceId};
use vmm::{Error, Subject};

use super::object::object;
use super::rate_limiter::{self, RateLimiter};

/// Body of `PUT /pmem/{id}`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pmem {
    pub(crate) id: String,
    pub(crate) path_on_host: PathBuf,
    #[serde(default)]
    pub(crate) root_device: bool,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

/// Body of `PATCH /pmem/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PmemPatch {
    pub(crate) id: String,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

impl PmemPatch {
    /// What changes in the limiter.
    pub(crate) fn rate_limits(&self) -> RateLimitChange {
        rate_limiter::change(self.rate_limiter)
    }
}

impl TryFrom<Pmem> for PmemConfig {
    type Error = Error;

    fn try_from(wire: Pmem) -> Result<Self, Error> {
        Ok(Self {
            id: ResourceId::try_from(wire.id.as_str()).map_err(|e| Error::invalid(Subject::None, e))?,
            path_on_host: wire.path_on_host,
            root_device: wire.root_device,
            read_only: wire.read_only,
            rate_limiter: rate_limiter::limits(wire.rate_limiter),
        })
    }
}

impl From<PmemConfig> for Pmem {
    fn from(config: PmemConfig) -> Self {
        Self {
            id: config.id.as_str().to_owned(),
            path_on_host: config.path_on_host,
            root_device: config.root_device,
            read_only: config.read_only,
            rate_limiter: rate_limiter::echo(config.rate_limiter),
        }
    }
}
