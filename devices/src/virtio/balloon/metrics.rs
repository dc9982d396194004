//! What a balloon counts. Names are those of the `balloon` group of the metrics file.

crate::metric_group! {
    /// Counters of the balloon.
    pub struct BalloonMetrics {
        /// Drivers with rings or wishes that cannot be.
        activate_fails: Counter,
        /// Inflate requests served.
        inflate_count: Counter,
        /// Statistics that arrived.
        stats_updates_count: Counter,
        /// Statistics that did not arrive in time, or were malformed.
        stats_update_fails: Counter,
        /// Deflate requests served.
        deflate_count: Counter,
        /// Malformed chains, and visits that ended with a broken ring.
        event_fails: Counter,
        /// Ranges of free memory reported.
        free_page_report_count: Counter,
        /// Bytes of them that went back to the host.
        free_page_report_freed: Counter,
        /// Reported ranges that did not, or not wholly.
        free_page_report_fails: Counter,
        /// Ranges of free memory hinted at.
        free_page_hint_count: Counter,
        /// Bytes of them that went back to the host.
        free_page_hint_freed: Counter,
        /// Hints that came at the wrong time, were malformed, or could not be followed wholly.
        free_page_hint_fails: Counter,
    }
    beyond v1 {
        /// Bytes that went back to the host by inflating.
        inflate_bytes: Counter,
        /// Pages named in inflate requests that stay with the guest: named twice, no RAM, or parts of a huge page.
        inflate_ignored_pages: Counter,
        /// Times the host did not take memory that was inflated.
        inflate_fails: Counter,
        /// Writes to the configuration space that made no sense.
        cfg_fails: Counter,
    }
}
