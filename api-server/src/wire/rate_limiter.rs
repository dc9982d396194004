//! Rate limiters: parsed, so that a misspelt one is still refused as such, but not offered yet.

use serde::Deserialize;

/// `{bandwidth?, ops?}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

/// `{size, one_time_burst?, refill_time}`; unknown fields are ignored, as the contract has it.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenBucket {
    #[expect(dead_code, reason = "checked for its type; rate limiters are refused until they exist")]
    size: u64,
    #[expect(dead_code, reason = "checked for its type; rate limiters are refused until they exist")]
    one_time_burst: Option<u64>,
    #[expect(dead_code, reason = "checked for its type; rate limiters are refused until they exist")]
    refill_time: u64,
}

impl RateLimiter {
    /// Whether this limits anything. `{}` does not, and is accepted.
    pub(crate) fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }
}
