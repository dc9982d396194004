//! What this process counts, and who is told.
//!
//! Groups of numbers are entered in the [`REGISTRY`]: those of the process at the start, those of a machine when it has been built; those of a
//! device leave it with the device. Reading them never waits and allocates nothing, so it may happen in a signal handler. How a report looks is not
//! decided here: a [`Reporter`] writes it (the v1 metrics file is the porch's), the VMM only says when.

mod groups;
mod registry;
mod report;

pub use groups::{LATENCIES, LOGGER, LatencyMetrics, LoggerMetrics, SECCOMP, SIGNALS, VMM, VmmMetrics};
pub use groups::{
    NO_BALLOON, NO_BLOCK, NO_ENTROPY, NO_I8042, NO_MEMORY, NO_MMDS, NO_NET, NO_PMEM, NO_UART, NO_VCPU, NO_VHOST_USER,
    NO_VSOCK, SeccompMetrics, SignalMetrics,
};
pub use registry::{Entry, Group, REGISTRY, Registry, Seen, Value};
pub use report::{Reporter, report, report_to};

pub use devices::irq::INTERRUPTS;
pub use devices::metric_group;
pub use devices::metrics::{Counter, Latency, Metric, MetricGroup, Spread, Stored, microseconds};

pub(crate) use report::Clock;
