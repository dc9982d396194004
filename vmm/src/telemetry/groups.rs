//! The groups that exist once per process, and empty ones of devices a machine may not have.

use devices::legacy::i8042::I8042Metrics;
use devices::legacy::serial::UartMetrics;
use devices::metrics::{Counter, Metric, MetricGroup, SUPPRESSED_LOG_LINES};
use devices::mmds::MmdsMetrics;
use devices::virtio::balloon::BalloonMetrics;
use devices::virtio::block::BlockMetrics;
use devices::virtio::mem::MemMetrics;
use devices::virtio::net::NetMetrics;
use devices::virtio::pmem::PmemMetrics;
use devices::virtio::rng::RngMetrics;
use devices::virtio::vhost_user::VhostUserMetrics;
use devices::virtio::vsock::VsockMetrics;

use crate::vcpu::VcpuMetrics;

devices::metric_group! {
    /// How long the last request of each kind took, in microseconds: as the API saw it, and as the VMM did.
    pub struct LatencyMetrics {
        /// A full snapshot, seen by the API.
        full_create_snapshot: Stored,
        /// A differential snapshot, seen by the API.
        diff_create_snapshot: Stored,
        /// Loading a snapshot, seen by the API.
        load_snapshot: Stored,
        /// A pause, seen by the API.
        pause_vm: Stored,
        /// A resumption, seen by the API.
        resume_vm: Stored,
        /// A full snapshot.
        vmm_full_create_snapshot: Stored,
        /// A differential snapshot.
        vmm_diff_create_snapshot: Stored,
        /// Loading a snapshot.
        vmm_load_snapshot: Stored,
        /// A pause.
        vmm_pause_vm: Stored,
        /// A resumption.
        vmm_resume_vm: Stored,
    }
}

devices::metric_group! {
    /// System calls that a filter caught.
    pub struct SeccompMetrics {
        /// How many; the first one ends the process.
        num_faults: Counter,
    }
}

devices::metric_group! {
    /// What happened to the VMM itself.
    pub struct VmmMetrics {
        /// Panics; the first one ends the process.
        panic_count: Counter,
    }
}

devices::metric_group! {
    /// Signals received. All but SIGPIPE end the process.
    pub struct SignalMetrics {
        /// SIGBUS.
        sigbus: Counter,
        /// SIGSEGV.
        sigsegv: Counter,
        /// SIGXFSZ.
        sigxfsz: Counter,
        /// SIGXCPU.
        sigxcpu: Counter,
        /// SIGPIPE.
        sigpipe: Counter,
        /// SIGHUP.
        sighup: Counter,
        /// SIGILL.
        sigill: Counter,
    }
}

/// What logs and reports lost.
#[derive(Debug, Default)]
pub struct LoggerMetrics {
    /// Reports that could not be written.
    pub missed_metrics_count: Counter,
    /// Reports that could not be made.
    pub metrics_fails: Counter,
    /// Log lines that could not be written.
    pub missed_log_count: Counter,
}

impl MetricGroup for LoggerMetrics {
    fn v1(&self, see: &mut dyn FnMut(&'static str, Metric<'_>)) {
        see("missed_metrics_count", (&self.missed_metrics_count).into());
        see("metrics_fails", (&self.metrics_fails).into());
        see("missed_log_count", (&self.missed_log_count).into());
        // Counted where the brakes are.
        see("rate_limited_log_count", (&SUPPRESSED_LOG_LINES).into());
    }

    fn beyond_v1(&self, _see: &mut dyn FnMut(&'static str, Metric<'_>)) {}
}

/// Of the process.
pub static LATENCIES: LatencyMetrics = LatencyMetrics::new();
/// Of the process.
pub static SECCOMP: SeccompMetrics = SeccompMetrics::new();
/// Of the process.
pub static VMM: VmmMetrics = VmmMetrics::new();
/// Of the process.
pub static SIGNALS: SignalMetrics = SignalMetrics::new();
/// Of the process.
pub static LOGGER: LoggerMetrics = LoggerMetrics {
    missed_metrics_count: Counter::new(),
    metrics_fails: Counter::new(),
    missed_log_count: Counter::new(),
};

/// Of a drive that is not there.
pub static NO_BLOCK: BlockMetrics = BlockMetrics::new();
/// Of a network interface that is not there.
pub static NO_NET: NetMetrics = NetMetrics::new();
/// Of a keyboard controller that is not there.
pub static NO_I8042: I8042Metrics = I8042Metrics::new();
/// Of a serial console that is not there.
pub static NO_UART: UartMetrics = UartMetrics::new();
/// Of a vCPU that is not there.
pub static NO_VCPU: VcpuMetrics = VcpuMetrics::new();
/// Of a balloon that is not there.
pub static NO_BALLOON: BalloonMetrics = BalloonMetrics::new();
/// Of a metadata service that is not there.
pub static NO_MMDS: MmdsMetrics = MmdsMetrics::new();
/// Of a socket device that is not there.
pub static NO_VSOCK: VsockMetrics = VsockMetrics::new();
/// Of a device with a backend that is not there.
pub static NO_VHOST_USER: VhostUserMetrics = VhostUserMetrics::new();
/// Of an entropy device that is not there.
pub static NO_ENTROPY: RngMetrics = RngMetrics::new();
/// Of persistent memory that is not there.
pub static NO_PMEM: PmemMetrics = PmemMetrics::new();
/// Of hot-pluggable memory that is not there.
pub static NO_MEMORY: MemMetrics = MemMetrics::new();
