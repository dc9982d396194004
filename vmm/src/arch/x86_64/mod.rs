//! The x86_64 machine: its address map, its first registers, its tables.
//!
//! Called by the machine room while it puts a VM together, in this order: [`layout::ram_regions`]
//! before guest memory exists; [`boot::load`] to place a kernel; [`acpi`] and [`mptable`] once the
//! devices have their windows and GSIs; [`boot::write_handoff`] with the RSDP's address; then
//! [`template`], [`cpuid`], [`msr`] and (vCPU 0 only) [`regs`] for each vCPU.
//!
//! It must not know KVM file descriptors, devices or configuration: inputs are numbers, outputs are
//! `kvm-bindings` structs and bytes in guest RAM.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod host;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod regs;
pub mod state;
pub mod template;
pub mod ticks;
