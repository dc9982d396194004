//! What a device with a backend counts. Names are those of the `vhost_user_block` groups of the metrics file.

crate::metric_group! {
    /// Numbers of one device.
    pub struct VhostUserMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Accesses to registers or the configuration space that made no sense.
        cfg_fails: Counter,
        /// How long it took to get to know the backend, in microseconds.
        init_time_us: Stored,
        /// How long it took from a driver that is ready to rings that are served.
        activate_time_us: Stored,
        /// How long the last change of the configuration space took.
        config_change_time_us: Stored,
    }
    beyond v1 {
        /// Connections that ended without our doing.
        connection_losses: Counter,
        /// Backends that were found again.
        reconnect_count: Counter,
    }
}
