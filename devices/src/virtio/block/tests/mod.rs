//! Drives on real files, driven by hand through their cell. Every test runs with every engine.

mod bad_input;
pub(crate) mod rig;
mod work;

use super::Engine;

/// Runs `test` with every engine there is on this host.
fn with_engines(test: impl Fn(&dyn Fn() -> Engine)) {
    test(&|| Engine::Sync);
}
