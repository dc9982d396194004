//! Counters that devices own, and the brake on log lines a guest can cause.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that only grows. Whoever reads it keeps the previous value if it wants differences.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets through at most [`LogBrake::BURST`] events per [`LogBrake::WINDOW`]. One per call site, by [`crate::guest_warn!`].
#[derive(Debug)]
pub struct LogBrake {
    /// Milliseconds since the first use of the process clock, plus one; 0 means never used.
    window_start_ms: AtomicU64,
    used: AtomicU32,
}

impl LogBrake {
    /// Lines per window.
    pub const BURST: u32 = 10;
    /// Length of a window.
    pub const WINDOW: Duration = Duration::from_secs(5);

    /// A released brake.
    pub const fn new() -> Self {
        Self { window_start_ms: AtomicU64::new(0), used: AtomicU32::new(0) }
    }

    /// Whether one more line may pass now. Two threads at the edge of a window may let a few lines too many through; that is harmless.
    pub fn pass(&self) -> bool {
        let now_ms = process_clock_ms();
        let start = self.window_start_ms.load(Ordering::Relaxed);
        if start == 0 || now_ms.saturating_sub(start) >= Self::WINDOW.as_millis() as u64 {
            self.window_start_ms.store(now_ms, Ordering::Relaxed);
            self.used.store(1, Ordering::Relaxed);
            return true;
        }
        self.used.load(Ordering::Relaxed) < Self::BURST && self.used.fetch_add(1, Ordering::Relaxed) < Self::BURST
    }
}

impl Default for LogBrake {
    fn default() -> Self {
        Self::new()
    }
}

/// Log lines that [`LogBrake`]s kept back, over the whole process.
pub static SUPPRESSED_LOG_LINES: Counter = Counter::new();

fn process_clock_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// Logs a warning that a guest can cause: at most ten lines per five seconds from each place in the code.
#[macro_export]
macro_rules! guest_warn {
    ($($arg:tt)+) => {{
        static BRAKE: $crate::metrics::LogBrake = $crate::metrics::LogBrake::new();
        if BRAKE.pass() {
            ::log::warn!($($arg)+);
        } else {
            $crate::metrics::SUPPRESSED_LOG_LINES.inc();
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brake_holds_after_a_burst() {
        let brake = LogBrake::new();
        let passed = (0..1000).filter(|_| brake.pass()).count();
        assert_eq!(passed as u32, LogBrake::BURST);
    }
}
