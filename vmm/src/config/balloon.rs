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

impl BalloonConfig {
    /// [`Self::amount_mib`] as the device counts it.
    pub fn target_pages(&self) -> u32 {
        pages_of_mib(self.amount_mib)
    }
}

/// The device counts its target in pages of 4 KiB, in 32 bits (virtio 1.3 §5.5.4).
const MAX_MIB: u32 = u32::MAX >> 8;

/// A balloon larger than the memory it is in; the text is the v1 contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Amount of pages requested is too large.")]
pub struct TooMuch;

/// Whether a balloon of `amount_mib` fits a guest with `mem_size_mib` of memory.
pub fn check_balloon(amount_mib: u32, mem_size_mib: u64) -> Result<(), TooMuch> {
    if u64::from(amount_mib) <= mem_size_mib && amount_mib <= MAX_MIB { Ok(()) } else { Err(TooMuch) }
}

/// Pages of 4 KiB in so many MiB, if [`check_balloon`] lets it be that many.
pub fn pages_of_mib(mib: u32) -> u32 {
    mib.saturating_mul(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_may_be_as_large_as_memory_but_no_larger() {
        assert_eq!(check_balloon(0, 1), Ok(()));
        assert_eq!(check_balloon(128, 128), Ok(()));
        assert_eq!(check_balloon(129, 128), Err(TooMuch));
        // As many pages as fit 32 bits, and one MiB more, which would wrap to none.
        assert_eq!(check_balloon((1 << 24) - 1, 1 << 40), Ok(()));
        assert_eq!(check_balloon(1 << 24, 1 << 40), Err(TooMuch));
    }
}
