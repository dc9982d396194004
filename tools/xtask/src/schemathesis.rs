//! The OpenAPI fuzzer the API tier runs, in a virtual environment of its own under the target directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell;

/// Pinned: another version may find other things, which must not fail a commit that has nothing to do with it.
const VERSION: &str = "4.32.5";

/// Installs it unless this version is there.
pub(crate) fn ensure() -> Result<()> {
    let home = home();
    let version = Command::new(home.join("bin/st")).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(VERSION)) {
        println!("all there: schemathesis {VERSION}");
        return Ok(());
    }
    shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let pip =
        ["install", "--quiet", "--disable-pip-version-check", &format!("schemathesis=={VERSION}")].map(str::to_owned);
    shell::run(Command::new(home.join("bin/pip")).args(pip))
}

/// Where the tests look for it.
fn home() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| shell::workspace().join("target"), PathBuf::from);
    target.join("tools/schemathesis")
}
