//! Numbers that devices own and others read, and the brake on log lines a guest can cause.

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

/// A number that is replaced, not added to: a start-up time, a flag.
#[derive(Debug, Default)]
pub struct Stored(AtomicU64);

impl Stored {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// For durations in a [`Stored`].
pub fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Shortest, longest and summed durations since they were last settled.
#[derive(Debug)]
pub struct Latency {
    /// `u64::MAX` before the first one.
    min_ns: AtomicU64,
    max_ns: AtomicU64,
    sum_ns: AtomicU64,
}

/// What a [`Latency`] gathered, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// The shortest; 0 if there was none.
    pub min_us: u64,
    /// The longest.
    pub max_us: u64,
    /// All together.
    pub sum_us: u64,
}

/// What a [`Latency`] gathered, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gathered {
    min_ns: u64,
    max_ns: u64,
    sum_ns: u64,
}

impl Gathered {
    /// In microseconds, rounded down.
    pub fn spread(self) -> Spread {
        let min_ns = if self.min_ns == u64::MAX { 0 } else { self.min_ns };
        Spread { min_us: min_ns / 1000, max_us: self.max_ns / 1000, sum_us: self.sum_ns / 1000 }
    }

    /// The sum in nanoseconds, by which to settle.
    pub fn sum_ns(self) -> u64 {
        self.sum_ns
    }
}

impl Latency {
    /// Nothing recorded.
    pub const fn new() -> Self {
        Self { min_ns: AtomicU64::new(u64::MAX), max_ns: AtomicU64::new(0), sum_ns: AtomicU64::new(0) }
    }

    /// Adds one duration.
    pub fn record(&self, took: Duration) {
        self.record_batch(took, 1);
    }

    /// Adds `count` durations of which only their sum is known; each is taken to be as long as the others.
    pub fn record_batch(&self, took: Duration, count: u32) {
        let ns = |took: Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(each) = took.checked_div(count).map(ns) else { return };
        self.look_for_extremes(each);
        self.sum_ns.fetch_add(ns(took), Ordering::Relaxed);
    }

    /// Adds one duration in nanoseconds.
    pub fn record_ns(&self, ns: u64) {
        self.look_for_extremes(ns);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn look_for_extremes(&self, ns: u64) {
        // Extremes are rare and plain reads are cheap, so this is one locked instruction nearly always.
        if ns < self.min_ns.load(Ordering::Relaxed) {
            self.min_ns.fetch_min(ns, Ordering::Relaxed);
        }
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// What was recorded since the last settlement. Not one atomic step: of a duration recorded meanwhile a part may be missing.
    pub fn gathered(&self) -> Gathered {
        Gathered {
            min_ns: self.min_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }

    /// Takes `sum_ns` from the sum, because it was reported, and starts to look for extremes anew.
    pub fn settle(&self, sum_ns: u64) {
        self.min_ns.store(u64::MAX, Ordering::Relaxed);
        self.max_ns.store(0, Ordering::Relaxed);
        self.sum_ns.fetch_sub(sum_ns, Ordering::Relaxed);
    }

    /// What was recorded since the last settlement, and settles it.
    pub fn take(&self) -> Spread {
        let gathered = self.gathered();
        self.settle(gathered.sum_ns);
        gathered.spread()
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

/// One number of a [`MetricGroup`].
#[derive(Debug, Clone, Copy)]
pub enum Metric<'a> {
    /// Shown as the difference to the last reading.
    Counter(&'a Counter),
    /// Shown as it is.
    Stored(&'a Stored),
    /// Shown as its spread since the last reading.
    Latency(&'a Latency),
}

impl<'a> From<&'a Counter> for Metric<'a> {
    fn from(counter: &'a Counter) -> Self {
        Self::Counter(counter)
    }
}

impl<'a> From<&'a Stored> for Metric<'a> {
    fn from(stored: &'a Stored) -> Self {
        Self::Stored(stored)
    }
}

impl<'a> From<&'a Latency> for Metric<'a> {
    fn from(latency: &'a Latency) -> Self {
        Self::Latency(latency)
    }
}

/// The numbers of one device or subsystem, by name. Made by [`crate::metric_group!`]. Reading takes no lock and allocates nothing, so it
/// may happen in a signal handler.
pub trait MetricGroup: Send + Sync {
    /// Shows the numbers that the v1 metrics file has, in its order and under its names.
    fn v1(&self, see: &mut dyn FnMut(&'static str, Metric<'_>));

    /// Shows those that it does not have. Strict readers of the v1 file refuse unknown names, so these are shown elsewhere.
    fn beyond_v1(&self, see: &mut dyn FnMut(&'static str, Metric<'_>));
}

/// Declares a struct of [`Counter`]s, [`Stored`]s and [`Latency`]s that is a [`MetricGroup`]. Field names are those of the v1 metrics
/// file; fields of our own go behind `beyond v1`.
///
/// ```
/// devices::metric_group! {
///     /// What a fountain counts.
///     pub struct FountainMetrics {
///         /// Drops thrown.
///         drops_count: Counter,
///         /// Time a drop flies.
///         flight_agg: Latency,
///     }
///     beyond v1 {
///         /// Birds seen.
///         birds_count: Counter,
///     }
/// }
/// static FOUNTAIN: FountainMetrics = FountainMetrics::new();
/// FOUNTAIN.drops_count.inc();
/// ```
#[macro_export]
macro_rules! metric_group {
    (
        $(#[$doc:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_doc:meta])* $field:ident: $kind:ident,)*
        }
        $(beyond v1 {
            $($(#[$more_doc:meta])* $more:ident: $more_kind:ident,)*
        })?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $($(#[$field_doc])* pub $field: $crate::metrics::$kind,)*
            $($($(#[$more_doc])* pub $more: $crate::metrics::$more_kind,)*)?
        }

        impl $name {
            /// Everything zero.
            pub const fn new() -> Self {
                Self {
                    $($field: $crate::metrics::$kind::new(),)*
                    $($($more: $crate::metrics::$more_kind::new(),)*)?
                }
            }
        }

        impl $crate::metrics::MetricGroup for $name {
            fn v1(&self, see: &mut dyn FnMut(&'static str, $crate::metrics::Metric<'_>)) {
                $(see(stringify!($field), (&self.$field).into());)*
                let _ = see;
            }

            fn beyond_v1(&self, see: &mut dyn FnMut(&'static str, $crate::metrics::Metric<'_>)) {
                $($(see(stringify!($more), (&self.$more).into());)*)?
                let _ = see;
            }
        }
    };
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

    crate::metric_group! {
        struct Sample {
            first: Counter,
            second: Stored,
            third_agg: Latency,
        }
        beyond v1 {
            own: Counter,
        }
    }

    #[test]
    fn a_group_shows_its_numbers_in_order() {
        let sample = Sample::new();
        sample.first.add(3);
        sample.second.set(7);
        sample.own.inc();
        let (mut v1, mut beyond) = (Vec::new(), Vec::new());
        sample.v1(&mut |name, _| v1.push(name));
        sample.beyond_v1(&mut |name, metric| beyond.push((name, matches!(metric, Metric::Counter(c) if c.get() == 1))));
        assert_eq!((v1, beyond), (vec!["first", "second", "third_agg"], vec![("own", true)]));
        assert_eq!((sample.first.get(), sample.second.get()), (3, 7));
    }

    #[test]
    fn a_latency_forgets_what_was_taken() {
        let latency = Latency::new();
        latency.record(Duration::from_micros(5));
        latency.record(Duration::from_micros(2));
        assert_eq!(latency.take(), Spread { min_us: 2, max_us: 5, sum_us: 7 });
        latency.record_batch(Duration::from_micros(30), 10);
        latency.record_batch(Duration::from_micros(8), 0);
        assert_eq!(latency.take(), Spread { min_us: 3, max_us: 3, sum_us: 30 });
        assert_eq!(latency.take(), Spread::default());
    }

    /// A report that was not delivered is not settled, and then nothing is missing from the next one.
    #[test]
    fn a_latency_keeps_what_was_not_settled() {
        let latency = Latency::new();
        latency.record_ns(700);
        let first = latency.gathered();
        assert_eq!(first.spread(), Spread { min_us: 0, max_us: 0, sum_us: 0 });
        latency.record_ns(1_300);
        assert_eq!(latency.gathered().spread(), Spread { min_us: 0, max_us: 1, sum_us: 2 });
        latency.settle(first.sum_ns());
        assert_eq!(latency.gathered().spread(), Spread { min_us: 0, max_us: 0, sum_us: 1 });
    }

    #[test]
    fn brake_holds_after_a_burst() {
        let brake = LogBrake::new();
        let passed = (0..1000).filter(|_| brake.pass()).count();
        assert_eq!(passed as u32, LogBrake::BURST);
    }
}
