//! `cargo xtask test`: every tier in order, then a table and the totals.
//!
//! A failing tier does not stop the next one, so that one run shows everything. The last
//! line is always `N passed, N failed, N skipped`.

mod tally;
mod targets;
mod tier;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::shell::heading;
use crate::{check, packages, release, schemathesis};
use tally::Tally;
use tier::Tier;

/// Which tests to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these tiers (may be repeated); without it all of them, and `check` first.
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let tiers = if options.tier.is_empty() { Tier::ALL.to_vec() } else { options.tier.clone() };
    let mut report = Report::default();
    report.step("requirements", || tiers.iter().try_for_each(|tier| tier.require()));
    if report.failed() {
        return report.end();
    }
    if tiers.iter().any(|tier| matches!(tier, Tier::Api | Tier::Guest | Tier::GuestPci | Tier::Linux)) {
        report.step("packages", packages::ensure);
    }
    if tiers.contains(&Tier::Api) {
        report.step("OpenAPI fuzzer", schemathesis::ensure);
    }
    let mut mayfly = None;
    report.step("release binaries", || {
        mayfly = release::build()?.into_iter().next();
        Ok(())
    });
    if options.tier.is_empty() {
        report.step("check: format, lints, docs", check::run);
    }
    let mut targets = Vec::new();
    report.step("test binaries", || {
        targets = targets::build()?;
        Ok(())
    });
    if let (Some(mayfly), false) = (mayfly, targets.is_empty()) {
        for tier in tiers {
            report.tier(tier, |tally| tier.run(&targets, &mayfly, tally));
        }
    }
    report.end()
}

/// What happened so far.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<(String, f64, Tally)>,
}

impl Report {
    /// A step that is one thing: it counts as one pass or one failure.
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        self.tier(name, |tally| {
            match step() {
                Ok(()) => tally.passed += 1,
                Err(error) => tally.fail(format!("{error:#}")),
            };
        });
    }

    fn tier(&mut self, name: impl ToString, body: impl FnOnce(&mut Tally)) {
        let name = name.to_string();
        heading(&name);
        let started = Instant::now();
        let mut tally = Tally::default();
        body(&mut tally);
        for failure in &tally.failures {
            println!("FAILED: {failure}");
        }
        self.rows.push((name, started.elapsed().as_secs_f64(), tally));
    }

    fn failed(&self) -> bool {
        self.rows.iter().any(|(_, _, tally)| tally.failed > 0)
    }

    fn end(self) -> Result<()> {
        heading("summary");
        let mut total = Tally::default();
        for (name, seconds, tally) in self.rows {
            println!("{name:<46} {tally} ({seconds:.0} s)");
            total.add(tally);
        }
        for skip in &total.skips {
            println!("skipped: {skip}");
        }
        for failure in &total.failures {
            println!("failed: {failure}");
        }
        println!("{total}");
        if total.failed > 0 {
            // Not an error value: its text would come after the totals.
            std::process::exit(1);
        }
        if total.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}
