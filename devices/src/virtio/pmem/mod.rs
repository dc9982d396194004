//! Persistent memory (virtio 1.3 §5.19): a file in the guest's address space.
//!
//! The guest reads and writes the file's pages itself, without any help of ours. What is left for the device is to say where the memory
//! is, and to make what was written durable when the guest asks for it. Who maps the file and puts it into the guest's address space
//! knows KVM and is not here.

mod device;
mod metrics;
pub mod syscalls;
mod write_trap;

pub use device::{Pmem, PmemSpec};
pub use metrics::PmemMetrics;
pub use write_trap::WriteTrap;

#[cfg(test)]
mod tests;
