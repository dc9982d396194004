//! vCPU threads: each runs `KVM_RUN` and carries guest accesses to the frozen buses, until it is told to pause or to end.

mod control;
mod hotplug;
mod metrics;
mod run;
mod sys;

pub use control::{Crew, Wanted};
pub use metrics::VcpuMetrics;
pub use run::{Buses, EndOfInterrupt, Vcpu};
