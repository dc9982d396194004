//! What the metadata service counts.

crate::metric_group! {
    /// Counters of the metadata service, over all cards. "Received" and "sent" are as the service sees it.
    pub struct MmdsMetrics {
        /// Frames a guest sent to the service.
        rx_accepted: Counter,
        /// Of these, frames that were dropped: malformed, or too many at once.
        rx_accepted_err: Counter,
        /// Of these, frames that are well formed but of no use to the service.
        rx_accepted_unusual: Counter,
        /// Frames that could not be read as Ethernet frames.
        rx_bad_eth: Counter,
        /// GET requests with a token that was not given out or has expired.
        rx_invalid_token: Counter,
        /// GET requests without a token.
        rx_no_token: Counter,
        /// Frames that the service took in.
        rx_count: Counter,
        /// Bytes of the frames sent to the guest.
        tx_bytes: Counter,
        /// Times a frame was handed to a card.
        tx_count: Counter,
        /// Frames that were lost on the way to the guest.
        tx_errors: Counter,
        /// Frames sent to the guest.
        tx_frames: Counter,
        /// Connections a guest opened.
        connections_created: Counter,
        /// Connections that ended.
        connections_destroyed: Counter,
    }
}
