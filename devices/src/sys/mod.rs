//! The cellar: every `unsafe` line of this crate.

pub mod disk;
pub mod iovec;
pub mod nonblocking;
pub mod tap;
pub mod terminal;
pub mod unix_stream;
pub mod uring;

#[cfg(test)]
pub(crate) mod test_net;
