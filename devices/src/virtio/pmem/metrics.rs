//! What a persistent-memory device counts. Names are those of the `pmem` group of the metrics file.

crate::metric_group! {
    /// Counters of one persistent-memory device.
    pub struct PmemMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Accesses to registers or the configuration space that made no sense.
        cfg_fails: Counter,
        /// Requests that made no sense, flushes the host failed, and broken rings.
        event_fails: Counter,
        /// Doorbells.
        queue_event_count: Counter,
        /// Visits that ended because the rate limiter was empty.
        rate_limiter_throttled_events: Counter,
        /// Times the rate limiter had tokens again.
        rate_limiter_event_count: Counter,
    }
    beyond v1 {
        /// Requests answered with success.
        flush_count: Counter,
        /// Times the file was synchronised; one may answer many requests.
        sync_count: Counter,
        /// How long that took.
        sync_agg: Latency,
        /// Guest writes to memory that may only be read, which were ignored.
        refused_writes_count: Counter,
    }
}
