//! Socket device (virtio 1.3 §5.10): stream connections between guest programs and host programs on Unix sockets.
//!
//! `muxer` stands between rings and sockets: who is connected, and what a packet or a socket's event means. A `connection` is a `link`
//! (protocol and credit, no I/O), a host socket and an `outbox`. `rx` and `tx` are the rings; `seats` bounds the number of connections,
//! `deadlines` is their timer, `knock` the line by which host programs say what they want.

mod connection;
mod deadlines;
mod device;
mod knock;
mod link;
mod metrics;
mod muxer;
mod outbox;
mod packet;
mod rx;
mod seats;
pub mod syscalls;
#[cfg(test)]
mod tests;
mod tx;

pub use self::device::{Vsock, VsockSpec};
pub use self::metrics::VsockMetrics;
pub use self::seats::MAX_SEATS;

/// After so many packets, other devices have their turn.
const MAX_PACKETS_PER_VISIT: usize = 256;
/// After so many bytes, too.
const MAX_BYTES_PER_VISIT: usize = 1 << 20;
