//! What the program is told of its start.

use rustix::time::{ClockId, clock_gettime};

/// When this process began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    /// Monotonic time, in microseconds.
    pub(crate) at_us: i64,
    /// Processor time used until then, in microseconds.
    pub(crate) cpu_us: i64,
}

impl Began {
    pub(crate) fn now() -> Self {
        Self { at_us: microseconds(ClockId::Monotonic), cpu_us: cpu_us() }
    }
}

/// Processor time that this process has used, in microseconds.
pub(crate) fn cpu_us() -> i64 {
    microseconds(ClockId::ProcessCPUTime)
}

fn microseconds(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000)
}
