use std::path::PathBuf;

use serde::Deserialize;
use vmm::config::SerialConfig;

use super::object::object;
use super::rate_limiter::TokenBucket;

/// Body of `PUT /serial`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serial {
    pub(crate) serial_out_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<TokenBucket>,
}

impl From<Serial> for SerialConfig {
    fn from(wire: Serial) -> Self {
        Self { serial_out_path: wire.serial_out_path, rate_limiter: wire.rate_limiter.and_then(TokenBucket::spec) }
    }
}
