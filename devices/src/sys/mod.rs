//! The cellar: every `unsafe` line of this crate.

pub mod iovec;
