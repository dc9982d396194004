//! The Linux tier: stock Debian guests booted by our VMM, inside a VM on an emulated CPU.
//!
//! QEMU's TCG emulates AMD SVM, so the outer guest has a complete `/dev/kvm` whatever the host
//! can do. Outer guests run the scenarios of `scripts/scenarios/`; each drives the API with
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

/// Scenarios whose guests have several processors. They have an outer guest with two CPUs, which is lost now and then (see `outer`).
const ON_TWO_CPUS: [&str; 5] = ["05-readme", "20-pvh-disks", "30-elf64-pause", "42-multi-queue", "65-races"];
/// Scenarios of one processor for one of the two outer guests with one CPU, half of the work; the other one has the rest.
const ON_THE_FIRST: [&str; 10] = [
    "07-fences",
    "09-jails-rootless",
    "40-root-network",
    "45-vhost-user",
    "70-cpu-identity",
    "80-rng-balloon",
    "81-balloon-free-pages",
    "82-pmem",
    "91-clones",
    "92-reseed",
];

/// Outer boots of a lane in all. The emulator loses it now and then (see `outer`); a monitor that stops it would do so each time.
const BOOTS: u32 = 6;

fn run(filter: &str, report: &Mutex<cases::Report>) -> Result<()> {
    let kernel = debian::kernel()?;
    let images = images::prepare(&kernel)?;
    let is_on_two = |name: &String| ON_TWO_CPUS.contains(&cases::parts(name).1);
    let (on_two, on_one): (Vec<_>, Vec<_>) = cases::scenarios(filter).into_iter().partition(is_on_two);
    let is_on_the_first = |name: &String| ON_THE_FIRST.contains(&cases::parts(name).1);
    let (first, second): (Vec<_>, Vec<_>) = on_one.into_iter().partition(is_on_the_first);
    let run = |name, cpus, scenarios| lane(&kernel, &images, Outer { name, cpus }, scenarios, report);
    // Never more emulated CPUs than a small host has. All have their turn, whatever becomes of the others.
    let alone = run("outer 1", 2, on_two);
    let together = std::thread::scope(|scope| {
        let lanes = [("outer 2", first), ("outer 3", second)]
            .map(|(name, scenarios)| scope.spawn(move || run(name, 1, scenarios)));
        lanes.map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")))
    });
    alone.and(together.into_iter().collect())
}

/// An outer guest.
#[derive(Clone, Copy)]
struct Outer {
    /// In the report.
    name: &'static str,
    cpus: u32,
}

/// Runs `scenarios` in an outer guest.
fn lane(
    kernel: &debian::Kernel,
    images: &images::Images,
    Outer { name: outer, cpus }: Outer,
    mut scenarios: Vec<String>,
    report: &Mutex<cases::Report>,
) -> Result<()> {
    for boot in 1..=BOOTS {
        if scenarios.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        let end = outer::run(kernel, images, cpus, &scenarios, |line| {
            if let Some(name) = line.strip_prefix("scenario ").and_then(|rest| rest.split(' ').next()) {
                at = scenarios.iter().position(|scenario| scenario == name).unwrap_or(at);
            }
            report.lock().unwrap_or_else(PoisonError::into_inner).outer_line(outer, line);
        })?;
        if end == outer::End::Done {
            return Ok(());
        }
        scenarios.drain(..at);
        let left = scenarios.first().cloned().unwrap_or_default();
        if boot == BOOTS {
            bail!("{outer} was lost {BOOTS} times, the last time in scenario {left}");
        }
        println!("booting {outer} again, from scenario {left}");
    }
    Ok(())
}
