//! PCI, as far as a machine with nothing but virtio devices needs it: one bus of 32 slots with one function each.
//!
//! `config` is a function's configuration space, `msix` its interrupts, `bus` the slots and the three ways in: the old ports, the memory-
//! mapped configuration space (ECAM) and the window that BARs lie in. `hotplug` tells a guest by ACPI that a slot was filled or should be
//! emptied. Nothing here knows virtio: see [`crate::virtio::transport::pci`]. Nothing knows KVM: interrupts go to [`msix::Vectors`].

pub mod bus;
pub mod config;
pub mod hotplug;
pub mod msix;
