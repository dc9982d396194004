/// The memory balloon (`PUT /balloon`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BalloonConfig {
    /// How much memory the guest should give back, in MiB.
    pub amount_mib: u32,
    /// The guest may take memory back from the balloon rather than kill a process.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 for never.
    pub stats_polling_interval_s: u16,
    /// Offer free-page hinting.
    pub free_page_hinting: bool,
    /// Offer free-page reporting.
    pub free_page_reporting: bool,
}
