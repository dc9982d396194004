//! The processor's own clock: cheap to read, and as precise as it gets.

/// The time stamp counter (SDM 3B 19.17). Constant and in step between cores on every processor that has KVM today; where it is not,
/// differences are off and nothing else.
pub fn now() -> u64 {
    // SAFETY: every 64-bit processor has it, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Turns ticks into nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Nanoseconds per tick, times 2^32.
    ns_per_tick: u64,
}

impl Scale {
    /// For a counter of `khz`; with an unknown frequency (0) everything takes no time.
    pub fn of_khz(khz: u32) -> Self {
        Self { ns_per_tick: (1_000_000u64 << 32).checked_div(khz.into()).unwrap_or(0) }
    }

    /// `ticks` in nanoseconds.
    pub fn ns(self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.ns_per_tick)) >> 32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        let scale = Scale::of_khz(2_500_000);
        assert_eq!(scale.ns(2_500_000_000).abs_diff(1_000_000_000), 1);
        assert_eq!(scale.ns(25), 9);
        assert_eq!(Scale::of_khz(0).ns(1 << 40), 0);
        assert!(now() <= now());
    }
}
