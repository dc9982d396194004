//! What differs between processor architectures, chosen here and nowhere else.
//!
//! This is the only place with a `cfg(target_arch)`: it picks one architecture's rooms and re-exports
//! them, so the rest of `vmm` says `arch::layout`, `arch::regs`, … and never names an architecture.
//! A new architecture is a new folder with the same file names.
//!
//! Everything below is plain data and writes into guest RAM. Nothing here opens files, calls KVM or
//! knows devices; the machine room applies the results.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
