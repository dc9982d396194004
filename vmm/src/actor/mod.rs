//! The VMM thread: it owns the machine and does what it is asked, one request at a time.

mod deeds;
mod handle;
mod vmm;

pub use handle::{Handle, launch};
pub use vmm::{Settings, Vmm};
