//! Block device (virtio 1.3 §5.2).
//!
//! `request` judges what a driver asks for, `device` serves the queue, `engine` moves the bytes. The format of the file is never looked
//! at: every file is a raw disk, so that nothing a guest writes into it can change how it is read (a header written by a guest must not
//! make the host open another file).

mod config_space;
mod device;
mod engine;
mod metrics;
mod request;
mod swap;
pub mod syscalls;

pub use device::{BackingFile, Block, BlockSpec, Engine, MAX_QUEUES};
pub use engine::UringHub;
pub use metrics::BlockMetrics;
pub use swap::swap_file;

#[cfg(test)]
pub(in crate::virtio) mod tests;
