//! What a network card counts.

use crate::metrics::Counter;

/// Counters of one network card. "Received" and "sent" are as the guest sees it; bytes are those of the frames, without headers.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// The driver was set up and the card could not be.
    pub activate_fails: Counter,
    /// Accesses to the configuration space that made no sense.
    pub cfg_fails: Counter,
    /// Frames had to wait on the tap because the guest offered no (or too small) buffers.
    pub no_rx_avail_buffer: Counter,
    /// The guest rang the transmit doorbell for nothing.
    pub no_tx_avail_buffer: Counter,
    /// Receive doorbells.
    pub rx_queue_event_count: Counter,
    /// Times the tap had something to read.
    pub rx_tap_event_count: Counter,
    /// Bytes received.
    pub rx_bytes_count: Counter,
    /// Frames received.
    pub rx_packets_count: Counter,
    /// Frames that were lost on the way to the guest: larger than its buffers.
    pub rx_fails: Counter,
    /// Successful reads of the tap.
    pub rx_count: Counter,
    /// The tap could not be read.
    pub tap_read_fails: Counter,
    /// The tap refused a frame; it is lost.
    pub tap_write_fails: Counter,
    /// Bytes sent.
    pub tx_bytes_count: Counter,
    /// Frames from the guest that are none: too short, too long, or behind a nonsensical header.
    pub tx_malformed_frames: Counter,
    /// Frames from the guest that were lost for any reason.
    pub tx_fails: Counter,
    /// Visits to the transmit queue.
    pub tx_count: Counter,
    /// Frames sent.
    pub tx_packets_count: Counter,
    /// Transmit doorbells.
    pub tx_queue_event_count: Counter,
    /// Frames sent from another MAC address than the card's.
    pub tx_spoofed_mac_count: Counter,
    /// Visits to the transmit queue that left chains for the next one.
    pub tx_remaining_reqs_count: Counter,
}
