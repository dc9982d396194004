//! Entropy device (virtio 1.3 §5.4): one queue, from which the guest gets the host kernel's random bytes.
//!
//! `device` serves the queue, `stock` draws from the kernel. No byte is handed out twice, and none that was handed out is kept.

mod device;
mod metrics;
mod stock;
pub mod syscalls;
#[cfg(test)]
mod tests;

pub use device::{MAX_REQUEST_LEN, Rng, RngSpec};
pub use metrics::RngMetrics;
