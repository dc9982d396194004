//! What an entropy device counts. Names are those of the `entropy` group of the metrics file.

crate::metric_group! {
    /// Counters of the entropy device.
    pub struct RngMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Malformed chains, requests without room for a byte, and visits that ended with a broken ring.
        entropy_event_fails: Counter,
        /// Doorbells.
        entropy_event_count: Counter,
        /// Random bytes given to the guest.
        entropy_bytes: Counter,
        /// Requests for which the host gave too few bytes.
        host_rng_fails: Counter,
        /// Visits that ended because the rate limiter was empty.
        entropy_rate_limiter_throttled: Counter,
        /// Times the rate limiter had tokens again.
        rate_limiter_event_count: Counter,
    }
    beyond v1 {
        /// Accesses to registers that made no sense.
        cfg_fails: Counter,
        /// Requests answered.
        requests_count: Counter,
    }
}
