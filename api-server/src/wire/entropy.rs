use serde::{Deserialize, Serialize};
use vmm::config::EntropyConfig;

use super::object::object;
use super::rate_limiter::{self, RateLimiter};

/// Body of `PUT /entropy`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entropy {
    #[serde(default, deserialize_with = "object")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

impl From<Entropy> for EntropyConfig {
    fn from(wire: Entropy) -> Self {
        Self { rate_limiter: rate_limiter::limits(wire.rate_limiter) }
    }
}

impl From<EntropyConfig> for Entropy {
    fn from(config: EntropyConfig) -> Self {
        Self { rate_limiter: rate_limiter::echo(config.rate_limiter) }
    }
}
