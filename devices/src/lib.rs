//! Device models: legacy chips, virtio devices and the transports under them.
//!
//! A device knows rings, guest RAM, an interrupt and a backend. It does not know KVM, vCPUs, HTTP, the configuration schema or tokio.

pub mod bus;
pub mod event;
#[cfg(any(test, feature = "test-driver"))]
mod fuzz_input;
pub mod irq;
pub mod legacy;
pub mod metrics;
pub mod mmds;
pub mod pci;
pub mod ram;
pub mod rate_limit;
pub mod sys;
pub mod syscalls;
pub mod virtio;
