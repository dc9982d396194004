//! From samples to the figures in the table. Pure arithmetic.

use serde_json::{Value, json};

/// The figures of one metric of one VMM, in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            n: sorted.len(),
            min: quantile(&sorted, 0.0)?,
            p10: quantile(&sorted, 0.1)?,
            median: quantile(&sorted, 0.5)?,
            p90: quantile(&sorted, 0.9)?,
            max: quantile(&sorted, 1.0)?,
        })
    }

    pub(crate) fn json(self) -> Value {
        json!({
            "n": self.n, "min": self.min, "p10": self.p10,
            "median": self.median, "p90": self.p90, "max": self.max,
        })
    }
}

/// The value below which the fraction `q` of `sorted` lies, interpolated between neighbours.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let (low, high, part) = (sorted.get(low)?, sorted.get(high)?, at.fract());
    Some(low + (high - low) * part)
}

/// How two VMMs compare: the median of the ratios first/second, pair by pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    /// The 95 % confidence interval of that median (sign test); `None` for fewer than six pairs.
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) pairs: usize,
}

impl Ratio {
    /// Pairs with a side that is zero or less have no ratio and are left out.
    pub(crate) fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let mut ratios: Vec<f64> = pairs
            .iter()
            .filter(|(first, second)| *first > 0.0 && *second > 0.0)
            .map(|(first, second)| first / second)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let interval = sign_test_rank(ratios.len()).and_then(|rank| {
            let high = ratios.len().checked_sub(rank + 1)?;
            Some((*ratios.get(rank)?, *ratios.get(high)?))
        });
        Some(Self { median: quantile(&ratios, 0.5)?, interval, pairs: ratios.len() })
    }

    pub(crate) fn json(self) -> Value {
        json!({
            "median": self.median, "pairs": self.pairs,
            "low_95": self.interval.map(|(low, _)| low),
            "high_95": self.interval.map(|(_, high)| high),
        })
    }
}

/// How many of the smallest (and of the largest) of `n` values lie outside the 95 % confidence
/// interval of their median: the largest `k` with P(Binomial(n, ½) ≤ k − 1) ≤ 2.5 %.
fn sign_test_rank(n: usize) -> Option<usize> {
    let mut probability = 0.5_f64.powi(i32::try_from(n).ok()?);
    let mut cumulative = 0.0;
    for k in 0..n {
        cumulative += probability;
        if cumulative > 0.025 {
            return k.checked_sub(1);
        }
        probability *= (n - k) as f64 / (k + 1) as f64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        let summary = Summary::of(&samples).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.5, 4.0));
        assert!((summary.p10 - 1.3).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_confidence_interval_has_the_ranks_of_the_sign_test() {
        // Tables of the sign test at 5 %, two-sided: none below n = 6, then ranks 1, 2 (n = 10: 2nd
        // smallest to 2nd largest), 10 (n = 30).
        assert_eq!(sign_test_rank(5), None);
        assert_eq!(sign_test_rank(6), Some(0));
        assert_eq!(sign_test_rank(10), Some(1));
        assert_eq!(sign_test_rank(30), Some(9));
        assert_eq!(sign_test_rank(40), Some(13));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let pairs: Vec<(f64, f64)> = (1..=9).map(|n| (f64::from(n), 2.0 * f64::from(n))).collect();
        let ratio = Ratio::of(&pairs).unwrap();
        assert_eq!((ratio.median, ratio.interval), (0.5, Some((0.5, 0.5))));
        assert_eq!(Ratio::of(&[(1.0, 0.0)]), None);
    }
}
