//! What a block device counts. Names are those of the `block` group of the metrics file.

crate::metric_group! {
    /// Counters of one drive.
    pub struct BlockMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Accesses to registers or the configuration space that made no sense.
        cfg_fails: Counter,
        /// Visits that found the queue empty.
        no_avail_buffer: Counter,
        /// Visits that ended with a broken ring.
        event_fails: Counter,
        /// Requests the host failed (EIO, ENOSPC, a file that became shorter).
        execute_fails: Counter,
        /// Requests that made no sense and were refused, and malformed chains.
        invalid_reqs_count: Counter,
        /// Flushes done.
        flush_count: Counter,
        /// Doorbells.
        queue_event_count: Counter,
        /// Times the rate limiter had tokens again.
        rate_limiter_event_count: Counter,
        /// Files swapped.
        update_count: Counter,
        /// File swaps that failed.
        update_fails: Counter,
        /// Bytes read.
        read_bytes: Counter,
        /// Bytes written.
        write_bytes: Counter,
        /// Reads done.
        read_count: Counter,
        /// Writes done.
        write_count: Counter,
        /// Visits that ended because the rate limiter was empty.
        rate_limiter_throttled_events: Counter,
        /// Visits that ended because the engine took no more.
        io_engine_throttled_events: Counter,
        /// Visits that left requests on the queue for the next one.
        remaining_reqs_count: Counter,
        /// How long reads took, from when the device came to them.
        read_agg: Latency,
        /// How long writes took, from when the device came to them.
        write_agg: Latency,
    }
    beyond v1 {
        /// Discards done.
        discard_count: Counter,
        /// Write-zeroes requests done.
        write_zeroes_count: Counter,
    }
}
