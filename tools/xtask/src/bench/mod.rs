//! `cargo xtask bench`: measures the release binary on this host.

use anyhow::{Result, bail};
use clap::Args;

/// What to measure, and against what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Another v1-compatible VMM, driven by the same script in interleaved pairs.
    #[arg(long, value_name = "BINARY")]
    against: Option<std::path::PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    bail!("the bench is not built yet (asked for {:?})", options.against)
}
