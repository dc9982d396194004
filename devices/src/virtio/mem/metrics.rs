//! What the memory device counts. Names are those of the `memory_hotplug` group of the metrics file.

crate::metric_group! {
    /// Counters of the memory device.
    pub struct MemMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Malformed chains, and visits that ended with a broken ring, and requests that could not be answered.
        queue_event_fails: Counter,
        /// Doorbells.
        queue_event_count: Counter,
        /// Requests to plug.
        plug_count: Counter,
        /// Bytes plugged.
        plug_bytes: Counter,
        /// Requests to plug that were refused.
        plug_fails: Counter,
        /// How long they took.
        plug_agg: Latency,
        /// Requests to unplug.
        unplug_count: Counter,
        /// Bytes unplugged.
        unplug_bytes: Counter,
        /// Requests to unplug that were refused.
        unplug_fails: Counter,
        /// Times the host did not take pages back.
        unplug_discard_fails: Counter,
        /// How long they took.
        unplug_agg: Latency,
        /// Questions for the state of blocks.
        state_count: Counter,
        /// Such questions that were refused.
        state_fails: Counter,
        /// How long they took.
        state_agg: Latency,
        /// Requests to unplug everything.
        unplug_all_count: Counter,
        /// Such requests that were refused.
        unplug_all_fails: Counter,
        /// How long they took.
        unplug_all_agg: Latency,
    }
    beyond v1 {
        /// Accesses to registers or the configuration space that made no sense.
        cfg_fails: Counter,
        /// Requests of no known kind.
        unknown_count: Counter,
        /// Bytes that vCPUs reach: all of each slot that holds a plugged block.
        reachable_bytes: Stored,
    }
}
