//! Transports: how a device's registers appear in the guest's address space.

pub mod mmio;
pub mod pci;
