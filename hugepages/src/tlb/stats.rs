//! Ratios of speed, over rounds.

use serde::Serialize;

use crate::stats::Summary;

/// Speed relative to base pages.
///
/// Each round is compared with itself, because a disturbance affects both sides of a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Over the rounds.
    #[serde(flatten)]
    pub times: Summary,
    /// Whether all rounds agree on which of the two is faster.
    pub difference: bool,
}

impl Ratio {
    /// `None` if the numbers of rounds differ, or are zero.
    ///
    /// ```
    /// use hugepages::tlb::{Better, Ratio};
    ///
    /// // Nanoseconds: half of them is twice as fast.
    /// let faster = Ratio::of(&[10.0, 11.0, 10.0], &[20.0, 22.0, 21.0], Better::Less).unwrap();
    /// assert_eq!(faster.times.median, 2.0);
    /// assert!(faster.difference);
    ///
    /// let same = Ratio::of(&[10.0, 11.0, 10.0], &[10.5, 10.5, 10.0], Better::Less).unwrap();
    /// assert!(!same.difference);
    /// ```
    pub fn of(rounds: &[f64], base: &[f64], better: Better) -> Option<Self> {
        if rounds.len() != base.len() {
            return None;
        }
        let ratios: Vec<f64> = rounds
            .iter()
            .zip(base)
            .map(|(this, base)| match better {
                Better::Less => base / this,
                Better::More => this / base,
            })
            .collect();
        let times = Summary::of(&ratios)?;
        Some(Self {
            times,
            difference: times.min > 1.0 || times.max < 1.0,
        })
    }
}

/// Whether the smaller or the larger value is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// For times.
    Less,
    /// For rates.
    More,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nothing_there_is_no_ratio() {
        assert_eq!(Ratio::of(&[], &[], Better::Less), None);
        assert_eq!(Ratio::of(&[1.0], &[1.0, 2.0], Better::Less), None);
    }

    #[test]
    fn rounds_are_compared_with_themselves() {
        // The machine was half as fast in the second round, but the ratio is the same.
        let ratio = Ratio::of(&[2.0, 1.0], &[1.0, 0.5], Better::More).unwrap();
        assert_eq!((ratio.times.min, ratio.times.max), (2.0, 2.0));
        assert!(ratio.difference);
    }

    #[test]
    fn slower_in_every_round_is_a_difference_too() {
        let ratio = Ratio::of(&[2.0, 2.1], &[1.0, 1.0], Better::Less).unwrap();
        assert!(ratio.difference);
        assert!(ratio.times.max < 1.0);
    }

    #[test]
    fn equal_rounds_are_no_difference() {
        let ratio = Ratio::of(&[2.0, 2.0], &[2.0, 2.0], Better::Less).unwrap();
        assert!(!ratio.difference);
    }
}
