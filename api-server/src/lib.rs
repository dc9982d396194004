//! The porch of Mayfly: command line, REST API on a Unix socket, demo.
//!
//! Everything asynchronous, everything HTTP and everything JSON lives here and goes no deeper: requests become values of
//! [`vmm::config`] and are sent to the VMM thread through a [`vmm::Handle`]. See `DESIGN.md` for how a request travels.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod app;
mod check_host;
mod cli;
mod config_file;
mod confinement;
mod demo;
mod error;
mod identity;
mod last_words;
mod logger;
mod metrics;
mod porch;
mod process;
mod routes;
mod server;
mod snapshot_file;
mod syscalls;
mod wire;

#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use process::main;

/// Every call that the filters of this process let through, by the threads that are meant to make it. For `cargo xtask rules`.
pub fn rules() -> Vec<(&'static [&'static str], vmm::confine::Call)> {
    let own = syscalls::ALWAYS.iter().chain(syscalls::BEFORE_THE_START).map(|call| (&["api"][..], *call));
    vmm::machine::rules().into_iter().chain(own).collect()
}
