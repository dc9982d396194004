//! The developer's commands: `cargo xtask check | test | fuzz | rules | bench | build`.
//!
//! Called by people and by `.ci/run`, with the same words. It knows cargo, the Debian
//! packages and the order of the tiers; it must not know what any test checks.

mod bench;
mod check;
mod fuzz;
mod packages;
mod release;
mod rules;
mod schemathesis;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Commands for people who work on Mayfly")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format, lints and docs: what must be clean before a commit.
    Check,
    /// Every test there is. Installs the Debian packages it needs; wants root and /dev/kvm.
    Test(test::Options),
    /// Coverage-guided fuzzing of what guests and clients can reach.
    Fuzz(fuzz::Options),
    /// Runs the guest and API tests under strace(1), without filters, and lists the rules of filters that nobody used.
    Rules(rules::Options),
    /// Measures the release binary on this host.
    Bench(bench::Options),
    /// Builds the static release binaries and says where they are.
    Build,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Check => check::run(),
        Command::Test(options) => test::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Rules(options) => rules::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Build => {
            for binary in release::build()? {
                println!("{}", binary.display());
            }
            Ok(())
        }
    }
}
