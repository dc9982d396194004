//! Getting a guest kernel into RAM: the parts that do not depend on the architecture.
//!
//! [`cmdline`] is the validated kernel command line, [`image`] reads kernel and initrd files straight
//! into guest RAM, [`initrd`] decides where the initrd goes. File formats and the boot protocols live
//! with the architecture; its [`load`] and [`write_handoff`] are re-exported here, so the machine room
//! only says `boot::load`.
//!
//! Kernel and initrd files are treated as hostile: every number in them is checked against the file's
//! length and guest RAM before anything is read, nothing is written outside RAM or below 1 MiB, and the
//! work is bounded by the size of RAM and of the file.

pub mod cmdline;
pub mod error;
pub mod image;
pub mod initrd;

pub use crate::arch::boot::{Entry, Loaded, Protocol, load, write_handoff};
pub use cmdline::CommandLine;
pub use error::{Error, Result};
