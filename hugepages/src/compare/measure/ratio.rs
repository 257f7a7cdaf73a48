//! Ratios and confidence intervals from a few noisy numbers.

use serde::Serialize;

/// Ratio B / A, from pairs of consecutive runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Geometric mean of the pairs' ratios.
    pub mean: f64,
    /// Lower end of the 95 % confidence interval, if the pairs are independent.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Number of pairs.
    pub n: usize,
}

impl Ratio {
    /// `None` with fewer than two pairs, or if a number is not above zero.
    ///
    /// It uses pairs, because a disturbance of a minute affects both runs of a pair. It uses logarithms, so that A / B is the
    /// inverse of B / A.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let mut logs = Vec::new();
        for (a, b) in pairs {
            if !(a > 0.0 && b > 0.0) {
                return None;
            }
            logs.push((b / a).ln());
        }
        if logs.len() < 2 {
            return None;
        }
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = student_95(logs.len() - 1) * (variance / n).sqrt();
        Some(Self {
            mean: mean.exp(),
            low: (mean - half).exp(),
            high: (mean + half).exp(),
            n: logs.len(),
        })
    }

    /// Whether the interval excludes 1.
    pub fn is_different(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// The two-sided 95 % quantile of Student's t distribution.
fn student_95(degrees_of_freedom: usize) -> f64 {
    const SMALL: [f64; 10] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    ];
    SMALL
        .get(degrees_of_freedom - 1)
        .copied()
        // within 0.2 % from 11 on: the first term of the expansion around the normal distribution
        .unwrap_or_else(|| {
            1.96 + 2.4 / degrees_of_freedom as f64 + 3.0 / (degrees_of_freedom as f64).powi(2)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_around_one_is_no_difference() {
        let ratio = Ratio::of([(1.0, 1.1), (1.1, 1.0), (1.0, 1.05), (1.02, 1.0)]).unwrap();
        assert!(!ratio.is_different(), "{ratio:?}");
        assert!((ratio.mean - 1.0).abs() < 0.05);
    }

    #[test]
    fn half_is_half_and_the_other_way_round_it_is_twice() {
        let pairs = [(2.0, 1.0), (2.2, 1.1), (1.9, 0.97)];
        let ratio = Ratio::of(pairs).unwrap();
        let inverse = Ratio::of(pairs.map(|(a, b)| (b, a))).unwrap();
        assert!(ratio.is_different() && inverse.is_different());
        assert!((ratio.mean * inverse.mean - 1.0).abs() < 1e-12);
        assert!((ratio.low * inverse.high - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_pair_says_nothing() {
        assert_eq!(Ratio::of([(2.0, 1.0)]), None);
        assert_eq!(Ratio::of([(2.0, 1.0), (0.0, 1.0)]), None);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, expected) in [
            (1, 12.706),
            (4, 2.776),
            (11, 2.201),
            (20, 2.086),
            (60, 2.0),
            (1000, 1.962),
        ] {
            let got = student_95(degrees);
            assert!((got - expected).abs() < 0.01, "{degrees}: {got}");
        }
    }
}
