//! What a block device counts. Names are those of the `block` group of the metrics file.

use crate::metrics::Counter;

/// Counters of one drive.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Activations that failed.
    pub activate_fails: Counter,
    /// Accesses to the configuration space that made no sense.
    pub cfg_fails: Counter,
    /// Visits that found the queue empty.
    pub no_avail_buffer: Counter,
    /// Visits that ended with a broken ring.
    pub event_fails: Counter,
    /// Requests the host failed (EIO, ENOSPC, a file that became shorter).
    pub execute_fails: Counter,
    /// Requests that made no sense and were refused.
    pub invalid_reqs_count: Counter,
    /// Flushes done.
    pub flush_count: Counter,
    /// Doorbells.
    pub queue_event_count: Counter,
    /// Files swapped.
    pub update_count: Counter,
    /// File swaps that failed.
    pub update_fails: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Bytes written.
    pub write_bytes: Counter,
    /// Reads done.
    pub read_count: Counter,
    /// Writes done.
    pub write_count: Counter,
    /// Visits that ended because the engine took no more.
    pub io_engine_throttled_events: Counter,
    /// Visits that left requests on the queue for the next one.
    pub remaining_reqs_count: Counter,
    /// Discards done.
    pub discard_count: Counter,
    /// Write-zeroes requests done.
    pub write_zeroes_count: Counter,
}
