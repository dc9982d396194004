//! The test binaries, built by one cargo call, and which tier each belongs to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::tally::Tally;
use super::tier::Tier;
use crate::shell;

/// One test binary.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) tier: Tier,
    /// Package and target, for people.
    pub(crate) name: String,
    executable: PathBuf,
    /// Tests expect to run in their package's directory, as under `cargo test`.
    package_dir: PathBuf,
}

/// Builds all of them and lists them in a fixed order.
pub(crate) fn build() -> Result<Vec<Target>> {
    let mut command = shell::cargo();
    command.args(["test", "--no-run", "--workspace", "--message-format", "json-render-diagnostics"]);
    let typed = shell::typed(&command);
    println!("$ {typed}");
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run `{typed}`"))?;
    if !output.status.success() {
        bail!("`{typed}` failed ({})", output.status);
    }
    let mut targets: Vec<Target> = String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect();
    if targets.is_empty() {
        bail!("`{typed}` built no test binary");
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// One line of cargo's JSON messages, if it announces a test binary.
fn parse(line: &str) -> Option<Target> {
    let message: Value = serde_json::from_str(line).ok()?;
    let executable = message.get("executable")?.as_str()?;
    if message.pointer("/profile/test")? != &Value::Bool(true) {
        return None;
    }
    let target = message.pointer("/target/name")?.as_str()?;
    let kind = message.pointer("/target/kind/0")?.as_str()?;
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    let package_dir = manifest.parent()?;
    let tier = if kind == "test" { Tier::of_integration_test(target) } else { Tier::Unit };
    let package = package_dir.strip_prefix(shell::workspace()).unwrap_or(package_dir);
    Some(Target {
        tier,
        name: format!("{}: {target} ({kind})", package.display()),
        executable: executable.into(),
        package_dir: package_dir.into(),
    })
}

impl Target {
    /// Runs it with the release binary as the one under test.
    pub(crate) fn run(&self, mayfly: &Path, env: &[(&str, &str)], tally: &mut Tally) {
        let mut command = Command::new(&self.executable);
        command.envs(env.iter().copied());
        command.current_dir(&self.package_dir).env("CARGO_MANIFEST_DIR", &self.package_dir).env("MAYFLY_BIN", mayfly);
        tally.run(&self.name, &mut command);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_binaries_are_taken_from_the_messages() {
        let message = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
                "target":{{"kind":["test"],"name":"guest_block"}},
                "profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let target = parse(&message(true, r#""/w/t/guest-1""#)).unwrap();
        assert_eq!(target.tier, Tier::Guest);
        assert_eq!(target.package_dir, Path::new("/w/tests"));
        assert!(parse(&message(false, r#""/w/t/guest-1""#)).is_none());
        assert!(parse(&message(true, "null")).is_none());
        assert!(parse("   Compiling x").is_none());
    }
}
