//! The static release binaries, built once and shared by tests and benches.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{cargo, run, workspace};

/// The target of `.cargo/config.toml`, whose directory holds the products.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the release binaries and returns their paths, `mayfly` first.
pub(crate) fn build() -> Result<Vec<PathBuf>> {
    run(cargo().args(["build", "--release", "-p", "api-server", "-p", "jailer", "--bins"]))?;
    Ok(["mayfly", "mayfly-jailer"].map(|name| dir().join(name)).into())
}

fn dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join(TARGET)
        .join("release")
}
