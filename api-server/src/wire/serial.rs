use std::path::PathBuf;

use serde::Deserialize;
use vmm::config::SerialConfig;

use super::Later;
use super::rate_limiter::TokenBucket;

/// Body of `PUT /serial`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serial {
    pub(crate) serial_out_path: Option<PathBuf>,
    pub(crate) rate_limiter: Option<TokenBucket>,
}

impl Serial {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        self.rate_limiter.as_ref().map(|_| Later("rate_limiter"))
    }
}

impl From<Serial> for SerialConfig {
    fn from(wire: Serial) -> Self {
        Self { serial_out_path: wire.serial_out_path, rate_limiter: None }
    }
}
