//! Taking samples of one or two VMMs in turn, and telling quiet samples from disturbed ones.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::host::Activity;
use super::subject::Subject;

/// What one sample says: values by metric.
pub(crate) type Sample = Vec<(&'static Metric, f64)>;

/// One line of the table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    /// Unique, and what `--only` matches.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

impl Metric {
    /// One of which less is better.
    pub(crate) const fn lower(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Lower }
    }

    /// One of which more is better.
    pub(crate) const fn higher(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Higher }
    }
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// How often a scenario is repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    /// Quiet samples wanted of each VMM.
    pub(crate) wanted: usize,
    /// First samples thrown away: caches are cold.
    pub(crate) warm_up: usize,
}

/// All samples of one scenario.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// By metric: one value per round and VMM, in the order of the subjects.
    pub(crate) values: BTreeMap<&'static Metric, Vec<Vec<Option<f64>>>>,
    /// Rounds with company that were left out, or kept for want of quiet ones.
    pub(crate) disturbed: usize,
    /// Whether disturbed rounds are among the values.
    pub(crate) kept_disturbed: bool,
    /// By subject: why it was not (or no longer) measured.
    pub(crate) refused: Vec<Option<String>>,
}

struct Round {
    quiet: bool,
    /// By subject.
    samples: Vec<Sample>,
}

/// Samples the subjects in the order A, B, B, A, A, B, B, … until enough rounds were quiet, but
/// at most twice as many as wanted. A subject that fails is left out from then on.
pub(crate) fn take(
    subjects: &[Subject],
    rounds: Rounds,
    cpus: usize,
    mut sample: impl FnMut(&Subject) -> Result<Sample>,
) -> Samples {
    let mut taken = Samples { refused: vec![None; subjects.len()], ..Samples::default() };
    let mut kept: Vec<Round> = Vec::new();
    for number in 0..rounds.warm_up + 2 * rounds.wanted {
        if kept.iter().filter(|round| round.quiet).count() >= rounds.wanted {
            break;
        }
        let round = one_round(subjects, number, cpus, &mut taken.refused, &mut sample);
        if taken.refused.iter().all(Option::is_some) {
            break;
        }
        if number >= rounds.warm_up {
            taken.disturbed += usize::from(!round.quiet);
            kept.push(round);
        }
    }
    // Half of the wanted quiet samples say more than all of them with company.
    let quiet = kept.iter().filter(|round| round.quiet).count();
    if 2 * quiet >= rounds.wanted {
        kept.retain(|round| round.quiet);
    } else {
        taken.kept_disturbed = taken.disturbed > 0;
    }
    for round in &kept {
        let mut line: BTreeMap<&'static Metric, Vec<Option<f64>>> = BTreeMap::new();
        for (subject, sample) in round.samples.iter().enumerate() {
            for (metric, value) in sample {
                let slots = line.entry(metric).or_insert_with(|| vec![None; subjects.len()]);
                slots[subject] = Some(*value);
            }
        }
        for (metric, slots) in line {
            taken.values.entry(metric).or_default().push(slots);
        }
    }
    taken
}

fn one_round(
    subjects: &[Subject],
    number: usize,
    cpus: usize,
    refused: &mut [Option<String>],
    sample: &mut impl FnMut(&Subject) -> Result<Sample>,
) -> Round {
    let mut round = Round { quiet: true, samples: vec![Sample::new(); subjects.len()] };
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    if number % 2 == 1 {
        order.reverse();
    }
    for index in order {
        if refused[index].is_some() {
            continue;
        }
        let (before, start) = (Activity::look(), Instant::now());
        match sample(&subjects[index]) {
            Ok(values) => round.samples[index] = values,
            Err(error) => refused[index] = Some(format!("{error:#}")),
        }
        let seconds = start.elapsed().as_secs_f64();
        round.quiet &= !before.disturbed(Activity::look(), seconds, cpus);
    }
    round
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    static METRIC: Metric = Metric { name: "m", unit: "ms", better: Better::Lower };

    fn subjects() -> Vec<Subject> {
        ["a", "b"].map(|label| Subject { label: label.to_owned(), binary: label.into() }).into()
    }

    #[test]
    fn sides_alternate_and_warm_up_is_thrown_away() {
        let mut order = String::new();
        let rounds = Rounds { wanted: 3, warm_up: 1 };
        let samples = take(&subjects(), rounds, 2, |subject| {
            order.push_str(&subject.label);
            Ok(vec![(&METRIC, order.len() as f64)])
        });
        assert!(order.starts_with("abbaabba"), "{order}");
        let values = &samples.values[&METRIC];
        assert!(values.len() >= 3, "disturbed rounds may be kept: {values:?}");
        assert!(values.iter().all(|row| row.iter().all(Option::is_some)));
        assert!(values.iter().flatten().all(|value| *value > Some(2.0)));
    }

    #[test]
    fn a_subject_that_fails_is_left_out_and_says_why() {
        let rounds = Rounds { wanted: 2, warm_up: 0 };
        let mut calls = 0;
        let samples = take(&subjects(), rounds, 2, |subject| {
            if subject.label == "b" {
                calls += 1;
                bail!("no such route");
            }
            Ok(vec![(&METRIC, 1.0)])
        });
        assert_eq!(calls, 1);
        assert_eq!(samples.refused, [None, Some("no such route".to_owned())]);
        assert!(samples.values[&METRIC].iter().all(|row| row[1].is_none()));
    }
}
