//! The Linux tier: stock Debian guests booted by our VMM, inside a VM on an emulated CPU.
//!
//! QEMU's TCG emulates AMD SVM, so the outer guest has a complete `/dev/kvm` whatever the host
//! can do. One outer boot runs every scenario of `scripts/scenarios/`; each drives the API with
//! `curl` and prints `case NAME ok` or `case NAME FAIL reason`. This program prepares the images,
//! watches the outer console, and reports in the form of a Rust test. A case of [`cases::CASES`]
//! that was not reported has failed.
//!
//! `cargo test -p mayfly-tests --test linux -- 40` runs the scenarios whose name contains `40`.

mod cases;
mod debian;
mod images;
mod outer;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    let expected = cases::of_scenarios(&filter);
    if args.iter().any(|arg| arg == "--list") {
        for case in &expected {
            println!("{case}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", expected.len());
    if expected.is_empty() {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    let mut report = cases::Report::new(expected);
    if let Err(error) = run(&filter, &mut report) {
        println!("the Linux tier stopped: {error:#}");
    }
    report.finish(started.elapsed())
}

/// Outer boots in all. The emulator loses it now and then (see `outer`); a monitor that stops it would do so each time.
const BOOTS: u32 = 3;

fn run(filter: &str, report: &mut cases::Report) -> Result<()> {
    let kernel = debian::kernel()?;
    let images = images::prepare(&kernel)?;
    let mut from = String::new();
    for boot in 1..=BOOTS {
        let mut at = from.clone();
        let end = outer::run(&kernel, &images, filter, &from, |line| {
            if let Some(name) = line.strip_prefix("scenario ").and_then(|rest| rest.split(' ').next()) {
                at = name.to_owned();
            }
            report.outer_line(line);
        })?;
        match end {
            outer::End::Done => return Ok(()),
            outer::End::Lost if boot < BOOTS => println!("booting the outer guest again, from scenario {at}"),
            outer::End::Lost => {}
        }
        from = at;
    }
    anyhow::bail!("the outer guest was lost {BOOTS} times, the last time in scenario {from}")
}
