//! Legacy chips: the few parts of a PC that kernels will not do without.
//!
//! Port and MMIO devices of vCPU threads ([`crate::bus::BusDevice`]); those with a host side are [`crate::event::Subscriber`]s too. Each
//! has at most one lock, held for the length of one access. They know an interrupt line, never KVM.

pub mod boot_timer;
pub mod cpu_hotplug;
pub mod i8042;
pub mod ioapic;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod serial_sink;
pub mod syscalls;
