//! The cellar: system calls that no crate wraps for us.

pub mod clock;
pub mod signals;
