use serde::{Deserialize, Serialize};

use super::BucketSpec;

/// What a limiter limits; `None` does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes.
    pub bandwidth: Option<BucketSpec>,
    /// Operations.
    pub ops: Option<BucketSpec>,
}

/// A change to one bucket of a running limiter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BucketChange {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is removed.
    Remove,
    /// It is replaced by a full one.
    Set(BucketSpec),
}

/// A change to a running limiter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimitChange {
    /// The bucket of bytes.
    pub bandwidth: BucketChange,
    /// The bucket of operations.
    pub ops: BucketChange,
}

impl RateLimits {
    /// These limits after `change`.
    pub fn changed(self, change: RateLimitChange) -> Self {
        let bucket = |old, change| match change {
            BucketChange::Keep => old,
            BucketChange::Remove => None,
            BucketChange::Set(spec) => Some(spec),
        };
        Self { bandwidth: bucket(self.bandwidth, change.bandwidth), ops: bucket(self.ops, change.ops) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up() {
        let spec = |size| BucketSpec { size, one_time_burst: 0, refill_ms: 1 };
        let limits = RateLimits { bandwidth: Some(spec(1)), ops: Some(spec(2)) };
        assert_eq!(limits.changed(RateLimitChange::default()), limits);
        let first = RateLimitChange { bandwidth: BucketChange::Set(spec(3)), ops: BucketChange::Remove };
        let second = RateLimitChange { bandwidth: BucketChange::Keep, ops: BucketChange::Set(spec(4)) };
        let both = RateLimits { bandwidth: Some(spec(3)), ops: Some(spec(4)) };
        assert_eq!(limits.changed(first).changed(second), both);
        assert_eq!(limits.changed(first), RateLimits { bandwidth: Some(spec(3)), ops: None });
    }
}
