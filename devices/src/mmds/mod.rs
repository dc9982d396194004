//! The metadata service: an operator's JSON, read by the guest over HTTP.
//!
//! [`Mmds`] is the service of one machine, shared between the thread that serves the API and the network cards. Each card that guests may
//! reach it by has a [`Stack`], which takes frames from the card's transmit path and has frames for its receive path. `ethernet` answers
//! ARP and judges frames before smoltcp, which does TCP, sees them; `http` and `answer` are what is said over it.
//!
//! Everything a guest can make us keep is bounded: connections, buffers, frames not yet fetched, answers not yet sent.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod answer;
mod connection;
mod ethernet;
#[cfg(any(test, feature = "test-driver"))]
pub mod fuzz;
mod http;
mod metrics;
mod stack;
mod store;
#[cfg(any(test, feature = "test-driver"))]
pub(crate) mod test_frames;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use metrics::MmdsMetrics;
pub use stack::{Checksum, Stack};
pub use store::{Document, Store, StoreError};
pub use token::SECRET_LEN;

use token::Tokens;

/// The address of the service's end of the link.
pub const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Where the service is unless it is told otherwise.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Whether reading takes a session token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// It does not; there are tokens for those who want one.
    V1,
    /// It does.
    V2,
}

/// How guests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// See [`Protocol`].
    pub protocol: Protocol,
    /// Always as text, whatever a client accepts.
    pub imds_compat: bool,
}

/// The metadata service of one machine.
#[derive(Debug)]
pub struct Mmds {
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    metrics: Arc<MmdsMetrics>,
}

impl Mmds {
    /// A service with nothing to say. `secret` is random and nobody else's; `limit` is the most JSON text it keeps, in bytes.
    pub fn new(secret: [u8; SECRET_LEN], limit: usize, now: Instant) -> Self {
        Self {
            store: Mutex::new(Store::new(limit)),
            tokens: Mutex::new(Tokens::new(secret, now)),
            metrics: Arc::default(),
        }
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<MmdsMetrics> {
        self.metrics.clone()
    }

    /// What guests may read.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Voids all tokens: this machine goes on from the state of another one.
    pub fn forget_tokens(&self, secret: [u8; SECRET_LEN], now: Instant) {
        *lock(&self.tokens) = Tokens::new(secret, now);
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held aborts the process in release builds; store and tokens are whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
