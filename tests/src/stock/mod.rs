//! What it takes to boot a stock distribution kernel: its image formats, and archives for
//! an initramfs. Pure functions on bytes, used by the Linux tier.

pub mod cpio;
pub mod kernel;
mod lz4;
