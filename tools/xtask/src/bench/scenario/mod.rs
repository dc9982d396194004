//! What is measured: each scenario drives fresh processes of a [`Subject`] and returns one sample.

mod block;
mod clones;
mod create_destroy;
mod idle;
mod jail;
mod memory;
mod mmds;
mod net;
mod pci;
mod requests;
mod slow_drive;
mod snapshot;
mod start;
mod vsock;
mod working_set;

use anyhow::Result;

use super::pairs::{Metric, Rounds, Sample};
use super::stats::quantile;
use super::subject::{Rig, Subject};

pub(crate) use net::{Network, REFUSAL_WITHOUT_ROOT};

/// One way to take samples.
pub(crate) struct Scenario {
    /// What `--only` matches, besides the names of its metrics.
    pub(crate) name: &'static str,
    pub(crate) metrics: &'static [&'static Metric],
    /// In full length; `--quick` takes a few.
    pub(crate) rounds: Rounds,
    pub(crate) sample: fn(&Subject, &Rig) -> Result<Sample>,
    /// Must run on a thread with a [`Network`] of its own.
    pub(crate) needs_network: bool,
}

/// Everything, in the order of the table.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = vec![
        start::API,
        jail::JAIL,
        requests::REQUESTS,
        start::INSTANCE,
        snapshot::SNAPSHOT,
        clones::CLONES,
        working_set::WORKING_SET,
        create_destroy::CYCLES,
        memory::MEMORY,
        idle::IDLE,
    ];
    all.extend(block::SCENARIOS);
    all.push(vsock::VSOCK);
    all.extend(net::SCENARIOS);
    all.push(mmds::MMDS);
    all.push(slow_drive::SLOW_DRIVE);
    all.extend(pci::SCENARIOS);
    all
}

/// p50 and p99.
fn typical_and_worst(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|q| quantile(&times, q).unwrap_or(f64::NAN))
}

/// Milliseconds.
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Microseconds.
fn us(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let scenarios = super::all();
        let names: BTreeSet<_> = scenarios.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), scenarios.len());
        let metrics = scenarios.iter().flat_map(|scenario| scenario.metrics);
        let names: BTreeSet<_> = metrics.clone().map(|metric| metric.name).collect();
        assert_eq!(names.len(), metrics.count());
    }
}
