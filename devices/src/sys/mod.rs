//! The cellar: every `unsafe` line of this crate.

pub mod disk;
pub mod fd_stream;
pub mod give_back;
pub mod iovec;
pub mod nonblocking;
pub mod random;
pub mod tap;
mod tap_queues;
pub mod terminal;
pub mod unix_stream;
pub mod uring;

#[cfg(any(test, feature = "test-driver"))]
#[cfg_attr(not(test), expect(dead_code, reason = "the fuzz target needs only a part of it"))]
pub(crate) mod test_net;
