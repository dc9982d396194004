//! `cargo xtask bench`: measures the release binary on this host, alone or against another VMM.
//!
//! Every sample comes from fresh processes driven through the v1 API alone, so the same script
//! measures any compatible VMM. With two, samples are taken in turn (A, B, B, A) and compared pair
//! by pair, because a shared machine is never the same one minute later. Nothing passes or fails
//! by its time; the bench fails only when Mayfly does not do what is asked of it. Measuring a binary
//! `--against` itself shows how large a difference means nothing here.
//!
//! | module | question it answers |
//! |---|---|
//! | [`scenario`] | what is done to a VMM, and which figures come out of it |
//! | [`subject`] | how one process is started, driven and ended |
//! | [`console`] | what the guest printed, and when it arrived |
//! | [`pairs`] | in which order samples are taken, and which count |
//! | [`host`] | which machine this is, and whether it was quiet |
//! | [`stats`] | medians, quantiles, ratios |
//! | [`report`] | how it is shown |

mod console;
mod host;
mod pairs;
mod report;
mod scenario;
mod stats;
mod subject;
mod sys;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::host::Host;
use self::pairs::{Rounds, Samples};
use self::report::Outcome;
use self::scenario::{Network, Scenario};
use self::subject::{Rig, Subject};

/// What to measure, and against what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Another v1-compatible VMM, driven by the same script in interleaved pairs.
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// The binary to measure instead of a fresh release build.
    #[arg(long, value_name = "BINARY")]
    binary: Option<PathBuf>,
    /// Writes everything, raw values included, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few and short samples: shows that everything works, says little about speed.
    #[arg(long)]
    quick: bool,
    /// Only scenarios or metrics whose name contains this; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Samples per metric instead of each scenario's own number.
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Prints the names that `--only` knows, and measures nothing.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let scenarios = chosen(&options.only)?;
    if options.list {
        for scenario in &scenarios {
            println!("{}", scenario.name);
            for metric in scenario.metrics {
                println!("    {} [{}]", metric.name, metric.unit);
            }
        }
        return Ok(());
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("the bench boots guests and needs /dev/kvm")?;
    let subjects = subjects(options)?;
    let rig = Rig::new(options.quick)?;
    let host = Host::look();
    if host.load > 0.5 {
        eprintln!("bench: load average {:.2}: other things are running here", host.load);
    }
    let (here, in_network): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(|scenario| !scenario.needs_network);
    let mut outcomes = Vec::new();
    for scenario in &here {
        outcomes.push(measure(scenario, &subjects, &rig, options, &host));
    }
    if !in_network.is_empty() {
        outcomes.extend(measure_in_network(&in_network, &subjects, &rig, options, &host)?);
    }
    print!("{}", report::table(&host, &subjects, &outcomes));
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report::json(&host, &subjects, &outcomes));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.samples.refused.first().is_some_and(Option::is_some))
        .map(|outcome| outcome.scenario)
        .collect();
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

/// The scenarios that any of the words names; all of them without words.
fn chosen(only: &[String]) -> Result<Vec<Scenario>> {
    let named = |scenario: &Scenario| {
        let names = scenario.metrics.iter().map(|metric| metric.name);
        let mut names = names.chain([scenario.name]);
        only.is_empty() || names.any(|name| only.iter().any(|word| name.contains(word.as_str())))
    };
    let chosen: Vec<_> = scenario::all().into_iter().filter(named).collect();
    if chosen.is_empty() {
        bail!("nothing is called that; `cargo xtask bench --list` says what is");
    }
    Ok(chosen)
}

fn subjects(options: &Options) -> Result<Vec<Subject>> {
    let own = match &options.binary {
        Some(path) => path.clone(),
        None => crate::release::build()?.into_iter().next().context("a release build has a binary")?,
    };
    let named = |label: &str, path: &PathBuf| -> Result<Subject> {
        let binary = path.canonicalize().with_context(|| format!("no binary at {}", path.display()))?;
        Ok(Subject { label: label.to_owned(), binary })
    };
    let mut subjects = vec![named("mayfly", &own)?];
    if let Some(other) = &options.against {
        subjects.push(named("other", other)?);
    }
    Ok(subjects)
}

fn measure(scenario: &Scenario, subjects: &[Subject], rig: &Rig, options: &Options, host: &Host) -> Outcome {
    let mut rounds = scenario.rounds;
    if options.quick {
        rounds = Rounds { wanted: 2, warm_up: 0 };
    }
    if let Some(samples) = options.samples {
        rounds.wanted = samples.max(1);
    }
    eprint!("bench: {} … ", scenario.name);
    let start = Instant::now();
    let samples = pairs::take(subjects, rounds, host.cpus, |subject| (scenario.sample)(subject, rig));
    let seconds = start.elapsed().as_secs_f64();
    let company = match samples.disturbed {
        0 => String::new(),
        n => format!(", {n} rounds disturbed"),
    };
    eprintln!("{seconds:.1} s{company}");
    for (subject, why) in subjects.iter().zip(&samples.refused) {
        if let Some(why) = why {
            eprintln!("bench: {} failed: {why}", subject.label);
        }
    }
    Outcome { scenario: scenario.name, metrics: scenario.metrics, samples }
}

/// The same on a thread with a network of its own, which ends with the thread.
fn measure_in_network(
    scenarios: &[Scenario],
    subjects: &[Subject],
    rig: &Rig,
    options: &Options,
    host: &Host,
) -> Result<Vec<Outcome>> {
    if !sys::is_root() {
        return Ok(scenarios.iter().map(|scenario| without_root(scenario, subjects)).collect());
    }
    let in_network = || -> Result<Vec<Outcome>> {
        let _network = Network::new()?;
        Ok(scenarios.iter().map(|scenario| measure(scenario, subjects, rig, options, host)).collect())
    };
    std::thread::scope(|scope| scope.spawn(in_network).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn without_root(scenario: &Scenario, subjects: &[Subject]) -> Outcome {
    eprintln!("bench: {} skipped: {}", scenario.name, scenario::REFUSAL_WITHOUT_ROOT);
    Outcome {
        scenario: scenario.name,
        metrics: scenario.metrics,
        samples: Samples {
            refused: vec![Some(scenario::REFUSAL_WITHOUT_ROOT.to_owned()); subjects.len()],
            ..Samples::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_matches_scenarios_and_metrics() {
        let names = |word: &str| -> Vec<_> {
            let chosen = chosen(&[word.to_owned()]).unwrap();
            chosen.iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(names("RSS"), ["memory"]);
        assert_eq!(names("net-").len(), 4);
        assert_eq!(names("qd 32").len(), 7);
        assert!(chosen(&["nonsense".to_owned()]).is_err());
        assert!(chosen(&[]).unwrap().len() > 20);
    }
}
