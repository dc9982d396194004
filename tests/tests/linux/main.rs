//! The Linux tier: stock Debian guests booted by our VMM, inside a VM on an emulated CPU.
//!
//! QEMU's TCG emulates AMD SVM, so the outer guest has a complete `/dev/kvm` whatever the host
//! can do. Two outer guests side by side run the scenarios of `scripts/scenarios/`; each drives the API with
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
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};

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
    let report = Mutex::new(cases::Report::new(expected));
    if let Err(error) = run(&filter, &report) {
        println!("the Linux tier stopped: {error:#}");
    }
    report.into_inner().unwrap_or_else(PoisonError::into_inner).finish(started.elapsed())
}

/// Scenarios of one processor each, which an outer guest with one CPU runs beside the other one. It is slower, and it is not lost.
const ON_ONE_CPU: [&str; 5] =
    ["70-cpu-identity", "80-rng-balloon", "81-balloon-free-pages", "83-memory-hotplug", "84-vsock"];

/// Outer boots of a lane in all. The emulator loses it now and then (see `outer`); a monitor that stops it would do so each time.
const BOOTS: u32 = 3;

fn run(filter: &str, report: &Mutex<cases::Report>) -> Result<()> {
    let kernel = debian::kernel()?;
    let images = images::prepare(&kernel)?;
    let (one, two): (Vec<_>, Vec<_>) = cases::scenarios(filter).partition(|name| ON_ONE_CPU.contains(name));
    std::thread::scope(|scope| {
        let lanes = [(1, one), (2, two)].map(|(cpus, scenarios)| {
            let (kernel, images) = (&kernel, &images);
            scope.spawn(move || lane(kernel, images, cpus, scenarios, report))
        });
        // Both have their turn, whatever becomes of the other.
        let ends = lanes.map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")));
        ends.into_iter().collect()
    })
}

/// Runs `scenarios` in an outer guest with so many CPUs.
fn lane(
    kernel: &debian::Kernel,
    images: &images::Images,
    cpus: u32,
    mut scenarios: Vec<&'static str>,
    report: &Mutex<cases::Report>,
) -> Result<()> {
    for boot in 1..=BOOTS {
        if scenarios.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        let end = outer::run(kernel, images, cpus, &scenarios, |line| {
            if let Some(name) = line.strip_prefix("scenario ").and_then(|rest| rest.split(' ').next()) {
                at = scenarios.iter().position(|scenario| *scenario == name).unwrap_or(at);
            }
            report.lock().unwrap_or_else(PoisonError::into_inner).outer_line(cpus, line);
        })?;
        if end == outer::End::Done {
            return Ok(());
        }
        scenarios.drain(..at);
        let left = scenarios.first().copied().unwrap_or_default();
        if boot == BOOTS {
            bail!("the outer guest with {cpus} CPUs was lost {BOOTS} times, the last time in scenario {left}");
        }
        println!("booting the outer guest with {cpus} CPUs again, from scenario {left}");
    }
    Ok(())
}
