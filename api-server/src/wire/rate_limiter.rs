use serde::{Deserialize, Serialize};
use vmm::config::{BucketChange, BucketSpec, RateLimitChange, RateLimits};

use super::object::object;

/// `{size, one_time_burst?, refill_time}`; unknown fields are ignored, as the contract has it.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) struct TokenBucket {
    size: u64,
    one_time_burst: Option<u64>,
    refill_time: u64,
}

/// `{bandwidth?, ops?}`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiter {
    #[serde(default, deserialize_with = "object")]
    bandwidth: Option<TokenBucket>,
    #[serde(default, deserialize_with = "object")]
    ops: Option<TokenBucket>,
}

impl TokenBucket {
    /// What it limits. Without tokens, or refilled in no time, it limits nothing: so clients switch a bucket off.
    pub(super) fn spec(self) -> Option<BucketSpec> {
        let Self { size, one_time_burst, refill_time } = self;
        (size != 0 && refill_time != 0).then(|| BucketSpec {
            size,
            one_time_burst: one_time_burst.unwrap_or(0),
            refill_ms: refill_time,
        })
    }
}

impl From<BucketSpec> for TokenBucket {
    fn from(spec: BucketSpec) -> Self {
        let one_time_burst = (spec.one_time_burst != 0).then_some(spec.one_time_burst);
        Self { size: spec.size, one_time_burst, refill_time: spec.refill_ms }
    }
}

/// What a PUT asks for.
pub(super) fn limits(limiter: Option<RateLimiter>) -> RateLimits {
    let bucket = |bucket: Option<TokenBucket>| bucket.and_then(TokenBucket::spec);
    limiter.map_or_else(RateLimits::default, |l| RateLimits { bandwidth: bucket(l.bandwidth), ops: bucket(l.ops) })
}

/// What a PATCH asks for: a bucket that is left out stays, one that limits nothing is removed.
pub(super) fn change(limiter: Option<RateLimiter>) -> RateLimitChange {
    let bucket = |bucket: Option<TokenBucket>| match bucket.map(TokenBucket::spec) {
        None => BucketChange::Keep,
        Some(None) => BucketChange::Remove,
        Some(Some(spec)) => BucketChange::Set(spec),
    };
    limiter.map_or_else(RateLimitChange::default, |l| RateLimitChange {
        bandwidth: bucket(l.bandwidth),
        ops: bucket(l.ops),
    })
}

/// How limits are shown; as none at all if nothing is limited.
pub(super) fn echo(limits: RateLimits) -> Option<RateLimiter> {
    let RateLimits { bandwidth, ops } = limits;
    (bandwidth.is_some() || ops.is_some())
        .then(|| RateLimiter { bandwidth: bandwidth.map(Into::into), ops: ops.map(Into::into) })
}
