//! Time from the time-stamp counter.

use crate::command_line::CommandLine;
use crate::{cpu, cpuid};

/// Used for timeouts only, when nobody knows the frequency.
const ASSUMED_KHZ: u64 = 2_500_000;

/// The counter's frequency, as far as it is known.
#[derive(Clone, Copy)]
pub struct Clock {
    khz: Option<u64>,
}

/// A point in time after which waiting is pointless.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Clock {
    /// From `mayfly.tsc_khz=`, else from CPUID.
    pub fn new(command_line: CommandLine) -> Self {
        let khz = match command_line.number("tsc_khz", 0) {
            0 => cpuid::tsc_khz(),
            khz => Some(khz),
        };
        Self { khz }
    }

    /// Cycles per millisecond; zero when unknown.
    pub fn khz(self) -> u64 {
        self.khz.unwrap_or(0)
    }

    /// Cycles as nanoseconds; zero when the frequency is unknown.
    pub fn nanoseconds(self, cycles: u64) -> u64 {
        self.khz.map_or(0, |khz| (u128::from(cycles) * 1_000_000 / u128::from(khz)) as u64)
    }

    /// Events per second; zero when the frequency is unknown.
    pub fn per_second(self, events: u64, cycles: u64) -> u64 {
        let hz = u128::from(self.khz()) * 1000;
        (u128::from(events) * hz / u128::from(cycles.max(1))) as u64
    }

    /// A deadline from now.
    pub fn deadline_ms(self, ms: u64) -> Deadline {
        Deadline(cpu::cycles().saturating_add(ms.saturating_mul(self.khz.unwrap_or(ASSUMED_KHZ))))
    }
}

impl Deadline {
    /// Whether it is over.
    pub fn passed(self) -> bool {
        cpu::cycles() > self.0
    }
}
