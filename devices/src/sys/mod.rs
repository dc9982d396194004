//! The cellar: every `unsafe` line of this crate.

pub mod disk;
pub mod iovec;
pub mod nonblocking;
pub mod terminal;
