//! The cellar: every `unsafe` line of this crate.

pub mod iovec;
pub mod nonblocking;
pub mod tap;
pub mod terminal;

#[cfg(test)]
pub(crate) mod test_net;
