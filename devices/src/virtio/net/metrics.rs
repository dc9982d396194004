//! What a network card counts.

crate::metric_group! {
    /// Counters of one network card. "Received" and "sent" are as the guest sees it; bytes are those of the frames, without headers.
    pub struct NetMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Accesses to registers or the configuration space that made no sense.
        cfg_fails: Counter,
        /// Frames had to wait on the tap because the guest offered no (or too small) buffers.
        no_rx_avail_buffer: Counter,
        /// The guest rang the transmit doorbell for nothing.
        no_tx_avail_buffer: Counter,
        /// Malformed chains, and visits that ended with a broken ring.
        event_fails: Counter,
        /// Receive doorbells.
        rx_queue_event_count: Counter,
        /// Times the receive rate limiter had tokens again.
        rx_event_rate_limiter_count: Counter,
        /// Times that receiving stopped for the receive rate limiter.
        rx_rate_limiter_throttled: Counter,
        /// Times the tap had something to read.
        rx_tap_event_count: Counter,
        /// Bytes received.
        rx_bytes_count: Counter,
        /// Frames received.
        rx_packets_count: Counter,
        /// Frames that were lost on the way to the guest: larger than its buffers.
        rx_fails: Counter,
        /// Successful reads of the tap.
        rx_count: Counter,
        /// The tap could not be read.
        tap_read_fails: Counter,
        /// The tap refused a frame; it is lost.
        tap_write_fails: Counter,
        /// Bytes sent.
        tx_bytes_count: Counter,
        /// Frames from the guest that are none: too short, too long, or behind a nonsensical header.
        tx_malformed_frames: Counter,
        /// Frames from the guest that were lost for any reason.
        tx_fails: Counter,
        /// Visits to the transmit queue.
        tx_count: Counter,
        /// Frames sent.
        tx_packets_count: Counter,
        /// Transmit doorbells.
        tx_queue_event_count: Counter,
        /// Times the transmit rate limiter had tokens again.
        tx_rate_limiter_event_count: Counter,
        /// Times that frames had to wait for the transmit rate limiter.
        tx_rate_limiter_throttled: Counter,
        /// Frames sent from another MAC address than the card's.
        tx_spoofed_mac_count: Counter,
        /// Visits to the transmit queue that left chains for the next one.
        tx_remaining_reqs_count: Counter,
        /// How long writes to the tap took. Those of one visit are timed together and count as equally long.
        tap_write_agg: Latency,
    }
}
