//! Drives on real files, driven by hand through their cell. Every test runs with every engine.

mod bad_input;
mod in_flight;
mod limits;
mod queues;
pub(crate) mod rig;
mod work;

use super::{Engine, UringHub};

/// Runs `test` with every engine there is on this host.
fn with_engines(test: impl Fn(&dyn Fn() -> Engine)) {
    test(&|| Engine::Sync);
    // A host without io_uring must fail here and not pass for half.
    test(&|| Engine::Async(UringHub::new(1).expect("the Async engine needs io_uring; see kernel.io_uring_disabled")));
}
