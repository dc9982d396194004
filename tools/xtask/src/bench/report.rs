//! The table for people and the JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::host::Host;
use super::pairs::{Better, Metric, Samples};
use super::stats::{Ratio, Summary};
use super::subject::Subject;

/// What came out of one scenario, or why nothing did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) scenario: &'static str,
    pub(crate) metrics: &'static [&'static Metric],
    pub(crate) samples: Samples,
}

/// One line: the figures of each subject, and their ratio when there are two.
struct Row {
    metric: &'static Metric,
    summaries: Vec<Option<Summary>>,
    ratio: Option<Ratio>,
}

impl Outcome {
    fn rows(&self, subjects: usize) -> Vec<Row> {
        let of = |metric: &&'static Metric| {
            let values = self.samples.values.get(metric)?;
            let column = |subject: usize| -> Vec<f64> { values.iter().filter_map(|row| row[subject]).collect() };
            let pairs: Vec<(f64, f64)> =
                values.iter().filter_map(|row| row.first().copied().flatten().zip(*row.get(1)?)).collect();
            Some(Row {
                metric,
                summaries: (0..subjects).map(|n| Summary::of(&column(n))).collect(),
                ratio: Ratio::of(&pairs),
            })
        };
        self.metrics.iter().filter_map(of).collect()
    }
}

/// Everything as text.
pub(crate) fn table(host: &Host, subjects: &[Subject], outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let Host { cpu, cpus, kernel, kvm, load } = host;
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n{cpu}, {cpus} CPUs, Linux {kernel}, {kvm}");
    let _ = writeln!(text, "load average {load:.2} before, {:.2} after", super::host::load());
    for (subject, sign) in subjects.iter().zip(["", ", below marked with │"]) {
        let _ = writeln!(text, "{}: {}{sign}", subject.label, subject.binary.display());
    }
    let width = outcomes
        .iter()
        .flat_map(|outcome| outcome.metrics)
        .map(|metric| metric.name.chars().count())
        .max()
        .unwrap_or(0);
    let _ = write!(
        text,
        "\n{:width$}  {:8} {:>10} {:>10} {:>10} {:>10} {:>4}",
        "metric", "", "median", "min", "p10", "p90", "n"
    );
    if subjects.len() > 1 {
        let _ = write!(text, " │ {:>10} {:>10} │ ratio (95 %)", "median", "min");
    }
    text.push('\n');
    for outcome in outcomes {
        for row in outcome.rows(subjects.len()) {
            let _ = write!(text, "{:width$}  {:8}", row.metric.name, row.metric.unit);
            line(&mut text, &row);
            text.push('\n');
        }
    }
    remarks(&mut text, subjects, outcomes);
    text
}

fn line(text: &mut String, row: &Row) {
    let mut summaries = row.summaries.iter();
    match summaries.next().copied().flatten() {
        Some(s) => {
            for value in [s.median, s.min, s.p10, s.p90] {
                let _ = write!(text, " {:>10}", figure(value));
            }
            let _ = write!(text, " {:>4}", s.n);
        }
        None => {
            let _ = write!(text, " {:>48}", "not measured");
        }
    }
    let Some(second) = summaries.next() else {
        return;
    };
    match second {
        Some(s) => {
            let _ = write!(text, " │ {:>10} {:>10} │", figure(s.median), figure(s.min));
        }
        None => {
            let _ = write!(text, " │ {:>21} │", "not measured");
        }
    }
    if let Some(ratio) = row.ratio {
        let good = match row.metric.better {
            Better::Lower => ratio.median < 1.0,
            Better::Higher => ratio.median > 1.0,
        };
        let _ = write!(text, " ×{}", figure(ratio.median));
        if let Some((low, high)) = ratio.interval {
            let _ = write!(text, " ({}–{})", figure(low), figure(high));
            if low <= 1.0 && high >= 1.0 {
                text.push_str(" no difference seen");
                return;
            }
        }
        text.push_str(if good { " better" } else { " worse" });
    }
}

/// What a reader must know before believing a figure.
fn remarks(text: &mut String, subjects: &[Subject], outcomes: &[Outcome]) {
    let counts = |kept: bool| -> String {
        let named =
            outcomes.iter().filter(|outcome| outcome.samples.disturbed > 0 && outcome.samples.kept_disturbed == kept);
        named.map(|outcome| format!(" {} ({})", outcome.scenario, outcome.samples.disturbed)).collect()
    };
    let (kept, left_out) = (counts(true), counts(false));
    if !kept.is_empty() {
        let _ = writeln!(text, "! disturbed by other programs, and the disturbed rounds are in the figures:{kept}");
    }
    if !left_out.is_empty() {
        let _ = writeln!(text, "  disturbed rounds left out:{left_out}");
    }
    for outcome in outcomes {
        for (subject, why) in subjects.iter().zip(&outcome.samples.refused) {
            if let Some(why) = why {
                let _ = writeln!(text, "! {}: {} was not measured: {why}", outcome.scenario, subject.label);
            }
        }
    }
}

/// A number with about three digits that matter.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Everything for programs, raw values included.
pub(crate) fn json(host: &Host, subjects: &[Subject], outcomes: &[Outcome]) -> Value {
    let scenarios: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            let metrics: Vec<Value> =
                outcome.rows(subjects.len()).into_iter().map(|row| metric(&row, &outcome.samples, subjects)).collect();
            let refused: Vec<_> = outcome.samples.refused.iter().zip(subjects).collect();
            json!({
                "scenario": outcome.scenario,
                "disturbed_rounds": outcome.samples.disturbed,
                "disturbed_rounds_kept": outcome.samples.kept_disturbed,
                "not_measured": refused.iter()
                    .filter_map(|(why, subject)| Some(json!({"subject": subject.label, "why": why.as_ref()?})))
                    .collect::<Vec<_>>(),
                "metrics": metrics,
            })
        })
        .collect();
    json!({
        "host": host.json(),
        "subjects": subjects.iter()
            .map(|subject| json!({"label": subject.label, "binary": subject.binary}))
            .collect::<Vec<_>>(),
        "scenarios": scenarios,
    })
}

fn metric(row: &Row, samples: &Samples, subjects: &[Subject]) -> Value {
    let figures: Vec<Value> = subjects
        .iter()
        .zip(&row.summaries)
        .map(|(subject, summary)| json!({"subject": subject.label, "summary": summary.map(Summary::json)}))
        .collect();
    json!({
        "name": row.metric.name,
        "unit": row.metric.unit,
        "better": match row.metric.better { Better::Lower => "lower", Better::Higher => "higher" },
        "figures": figures,
        "ratio": row.ratio.map(Ratio::json),
        "rounds": samples.values.get(row.metric),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static TIME: Metric = Metric { name: "a time", unit: "ms", better: Better::Lower };

    fn one() -> (Host, Vec<Subject>, Vec<Outcome>) {
        let host = Host { cpu: "A CPU".to_owned(), cpus: 2, kernel: "6".to_owned(), kvm: "KVM", load: 0.0 };
        let subjects = ["mayfly", "other"].map(|label| Subject { label: label.to_owned(), binary: label.into() });
        let rows = vec![vec![Some(1.0), Some(4.0)]; 8];
        let samples = Samples {
            values: [(&TIME, rows)].into(),
            disturbed: 2,
            kept_disturbed: false,
            refused: vec![None, Some("no".to_owned())],
        };
        static METRICS: [&Metric; 1] = [&TIME];
        let outcome = Outcome { scenario: "s", metrics: &METRICS, samples };
        (host, subjects.into(), vec![outcome])
    }

    #[test]
    fn the_table_has_figures_ratio_and_remarks() {
        let (host, subjects, outcomes) = one();
        let text = table(&host, &subjects, &outcomes);
        assert!(text.contains("A CPU, 2 CPUs"), "{text}");
        assert!(text.contains("×0.250 (0.250–0.250) better"), "{text}");
        assert!(text.contains("disturbed rounds left out: s (2)"), "{text}");
        assert!(text.contains("! s: other was not measured: no"), "{text}");
    }

    #[test]
    fn the_json_has_raw_values() {
        let (host, subjects, outcomes) = one();
        let value = json(&host, &subjects, &outcomes);
        let metric = &value["scenarios"][0]["metrics"][0];
        assert_eq!(metric["figures"][1]["summary"]["median"], 4.0);
        assert_eq!(metric["rounds"][7][0], 1.0);
        assert_eq!(metric["ratio"]["median"], 0.25);
    }
}
