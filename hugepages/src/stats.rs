//! Medians and ranges, and their form in tables and diagrams.

use serde::Serialize;

/// Summary of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value; for an even number of values, the mean of the two middle values.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// `None` without values.
    ///
    /// ```
    /// use hugepages::stats::Summary;
    ///
    /// let summary = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
    /// assert_eq!((summary.median, summary.min, summary.max), (2.0, 1.0, 3.0));
    /// ```
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }
}

/// The smallest of the values that `percent` of a hundred values do not exceed. `None` without values.
///
/// ```
/// use hugepages::stats::percentile;
///
/// let ascending = [1.0, 2.0, 3.0, 4.0];
/// assert_eq!([50, 99, 100].map(|percent| percentile(&ascending, percent)), [Some(2.0), Some(4.0), Some(4.0)]);
/// ```
pub fn percentile(ascending: &[f64], percent: usize) -> Option<f64> {
    let rank = (ascending.len() * percent).div_ceil(100);
    ascending.get(rank.max(1) - 1).copied()
}

/// Formats a value with three significant digits.
///
/// ```
/// use hugepages::stats::figure;
///
/// assert_eq!([361.4, 10.21, 1.499].map(figure), ["361", "10.2", "1.50"]);
/// ```
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let summary = Summary::of(&[4.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!(
            (summary.median, summary.min, summary.max),
            (3.0, 1.0, 100.0)
        );
    }

    #[test]
    fn the_order_of_measurements_does_not_matter() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.5, 4.0));
    }

    #[test]
    fn of_nothing_there_is_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    proptest! {
        #[test]
        fn the_median_lies_within_and_order_does_not_matter(mut values in prop::collection::vec(0.001f64..1e6, 1..20)) {
            let summary = Summary::of(&values).unwrap();
            prop_assert!(summary.min <= summary.median && summary.median <= summary.max);
            values.reverse();
            prop_assert_eq!(Summary::of(&values), Some(summary));
        }
    }
}
