//! What a socket device counts.

crate::metric_group! {
    /// Counters of the socket device. "Received" (rx) is what the guest gets, "sent" (tx) what it gives; bytes are those of data.
    pub struct VsockMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Accesses to registers that made no sense, and writes to the configuration space, which has nothing to write.
        cfg_fails: Counter,
        /// Visits to the receive queue that found it broken.
        rx_queue_event_fails: Counter,
        /// Visits to the transmit queue that found it broken, and malformed chains of any queue.
        tx_queue_event_fails: Counter,
        /// Visits to the event queue that found it broken.
        ev_queue_event_fails: Counter,
        /// Host programs that could not be accepted, or host sockets that could not be watched.
        muxer_event_fails: Counter,
        /// Events of connections that were gone.
        conn_event_fails: Counter,
        /// Receive doorbells.
        rx_queue_event_count: Counter,
        /// Transmit doorbells.
        tx_queue_event_count: Counter,
        /// Bytes received from host programs.
        rx_bytes_count: Counter,
        /// Bytes sent to host programs.
        tx_bytes_count: Counter,
        /// Packets to the guest.
        rx_packets_count: Counter,
        /// Packets from the guest.
        tx_packets_count: Counter,
        /// Connections made.
        conns_added: Counter,
        /// Connections that were ended by force: protocol errors and time limits.
        conns_killed: Counter,
        /// Connections that ended, however.
        conns_removed: Counter,
        /// Always zero: there is no queue of connections to kill that could get out of step.
        killq_resync: Counter,
        /// Kept data could not be written because the host program was gone.
        tx_flush_fails: Counter,
        /// Data could not be written because the host program was gone.
        tx_write_fails: Counter,
        /// Data could not be read because the host program was gone without an end.
        rx_read_fails: Counter,
    }
    beyond v1 {
        /// Connections that were refused because all seats were taken.
        conns_refused: Counter,
        /// Guest connections to ports where no host program listens.
        no_listener_count: Counter,
        /// Host programs that did not say, or not in time, what they want.
        handshake_fails: Counter,
        /// Host programs that said nothing, or did not read the last data of an ended connection, and had to make room for others.
        idlers_evicted: Counter,
        /// Packets that were none, or came from elsewhere.
        tx_malformed_packets: Counter,
        /// Times that packets had to wait because the guest offered no receive buffers.
        no_rx_avail_buffer: Counter,
        /// Times that the transmit queue had to wait because the guest does not receive the answers.
        tx_stalls: Counter,
    }
}
