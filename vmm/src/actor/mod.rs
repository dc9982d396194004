//! The VMM: it owns the machine and does what it is asked, one request at a time, on the thread that calls [`Vmm::run`].

mod deeds;
mod handle;
mod vmm;

pub use handle::{Handle, create, launch};
pub use vmm::{Settings, Vmm};
