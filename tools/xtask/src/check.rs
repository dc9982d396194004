//! `cargo xtask check`: format, lints, docs. Stops at the first that is not clean.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{self, cargo, workspace};

/// The guest's sources are compiled by a build script, so `cargo fmt` does not see them.
const BARE_GUEST: &str = "tools/guest/src/bare";

pub(crate) fn run() -> Result<()> {
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    format_of_the_bare_guest()?;
    shell::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut docs = cargo();
    docs.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    shell::run(&mut docs)
}

fn format_of_the_bare_guest() -> Result<()> {
    let mut sources = Vec::new();
    let dir = workspace().join(BARE_GUEST);
    if dir.is_dir() {
        rust_sources(&dir, &mut sources)?;
    }
    if sources.is_empty() {
        return Ok(());
    }
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--check", "--edition", "2024"]).args(sources).current_dir(workspace());
    shell::run(&mut rustfmt)
}

fn rust_sources(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries = dir.read_dir().with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            rust_sources(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    into.sort();
    Ok(())
}
