use super::RateLimits;

/// The entropy device (`PUT /entropy`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntropyConfig {
    /// Bytes and requests per time.
    pub rate_limiter: RateLimits,
}
