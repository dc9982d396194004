//! `cargo xtask fuzz`: coverage-guided fuzzing with libFuzzer and AddressSanitizer.
//!
//! Each program of `tests/fuzz/fuzz_targets` starts from its corpus in `tests/fuzz/corpus/NAME`. What a run finds stays under the target
//! directory; `--keep` merges the inputs that reach new code into the corpus. The sanitizer's switches are unstable in rustc, so the build
//! sets `RUSTC_BOOTSTRAP`, which spares a second tool chain.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell::{self, heading};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What cargo-fuzz passes too. Replaces the workspace's own flags: a sanitizer needs a dynamic executable.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address \
                     -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";
const SMOKE_SECONDS: u32 = 60;

/// What to fuzz and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these targets; without it all of them.
    target: Vec<String>,
    /// 60 seconds for each target.
    #[arg(long, conflicts_with = "seconds")]
    smoke: bool,
    /// Seconds for each target [default: 10].
    #[arg(long)]
    seconds: Option<u32>,
    /// Add what reached new code to the corpus in the repository.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds = if options.smoke { SMOKE_SECONDS } else { options.seconds.unwrap_or(10) };
    let known = targets()?;
    for name in &options.target {
        if !known.contains(name) {
            bail!("there is no fuzz target `{name}`; there are: {}", known.join(" "));
        }
    }
    let chosen: Vec<String> =
        known.into_iter().filter(|name| options.target.is_empty() || options.target.contains(name)).collect();
    build()?;
    let mut failed = Vec::new();
    // One per processor at a time: they compete for nothing else.
    let abreast = std::thread::available_parallelism().map_or(1, usize::from);
    for group in chosen.chunks(abreast) {
        heading(&format!("{} for {seconds} s", group.join(" ")));
        let running = group.iter().map(|name| Ok((name, start(name, seconds)?))).collect::<Result<Vec<_>>>()?;
        for (name, child) in running {
            let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                println!("{name}: {}", said.lines().rfind(|line| line.starts_with("Done")).unwrap_or("ended"));
            } else {
                println!("{said}");
                failed.push(name.clone());
            }
        }
        if options.keep {
            group.iter().try_for_each(|name| keep(name))?;
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; the inputs are in {}", failed.join(" "), found().display());
    }
    println!("{} targets, {seconds} s each: nothing found", chosen.len());
    Ok(())
}

fn home() -> PathBuf {
    shell::workspace().join("tests/fuzz")
}

fn products() -> PathBuf {
    shell::workspace().join("target/fuzz")
}

/// Where inputs go that a run finds.
fn found() -> PathBuf {
    products().join("found")
}

/// The inputs of a target in the repository.
fn corpus(name: &str) -> PathBuf {
    home().join("corpus").join(name)
}

fn targets() -> Result<Vec<String>> {
    let folder = home().join("fuzz_targets");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let stem = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = entries.filter_map(|entry| stem(&entry.ok()?.path())).collect();
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    let mut command = shell::cargo();
    command
        .current_dir(home())
        .args(["build", "--release", "--target", TRIPLE, "--target-dir"])
        .arg(products())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS);
    shell::run(&mut command)
}

fn program(name: &str) -> Command {
    let mut command = Command::new(products().join(TRIPLE).join("release").join(name));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

fn start(name: &str, seconds: u32) -> Result<std::process::Child> {
    let new = found().join(name);
    std::fs::create_dir_all(&new)?;
    std::fs::create_dir_all(corpus(name))?;
    program(name)
        .args([format!("-max_total_time={seconds}"), "-timeout=10".to_owned(), "-rss_limit_mb=2048".to_owned()])
        .arg(format!("-artifact_prefix={}/{name}-", found().display()))
        .arg(new)
        .arg(corpus(name))
        .spawn()
        .with_context(|| format!("cannot start the fuzz target {name}"))
}

fn keep(name: &str) -> Result<()> {
    let status = program(name)
        .arg("-set_cover_merge=1")
        .arg(corpus(name))
        .arg(found().join(name))
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("merging what {name} found failed ({status})");
    }
    Ok(())
}
