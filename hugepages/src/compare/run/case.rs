//! One case: two sides, the state of the page cache, and the results of all runs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cache, Side};
use crate::compare::measure::{DirectRead, Load, Ratio, Sample};
use crate::stats::Summary;

/// Two sides, and the state of the page cache at their start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Name, such as `cold`, from [`super::CASES`].
    pub name: String,
    /// Name of the model in the report.
    pub model: String,
    /// State of the page cache at the start of each run.
    pub cache: Cache,
    /// The baseline.
    pub a: Side,
    /// The side that is compared with the baseline.
    pub b: Side,
    /// Whether fio reads the model of B between the pairs.
    pub direct_read: bool,
    /// Planned bytes of huge pages for B; 0 without huge pages.
    pub planned_bytes: u64,
    /// Planned bytes of ordinary memory for B.
    pub planned_ordinary_bytes: u64,
    /// Whether both sides must give the same tokens. Repacked weights are summed in another order than the others.
    pub is_equal: bool,
}

/// All runs of a case, without the first run of each side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    /// The case.
    pub case: Case,
    /// Tokens that were equal bit for bit before the measurement; 0 if the case does not compare them.
    pub equal_tokens: usize,
    /// Ratio B / A of each measure that is above zero in all runs, by its id.
    pub ratios: BTreeMap<&'static str, Ratio>,
    /// Pairs of a run of A and a run of B, in any order.
    pub pairs: Vec<(Sample, Sample)>,
    /// Read speed of the disk at that time.
    pub direct_reads: Vec<DirectRead>,
}

impl CaseResult {
    /// Ratio B / A of a measure.
    pub fn ratio(&self, measure: impl Fn(&Sample) -> f64) -> Option<Ratio> {
        Ratio::of(self.pairs.iter().map(|(a, b)| (measure(a), measure(b))))
    }

    /// Summaries of A and of B.
    pub fn summaries(&self, measure: impl Fn(&Sample) -> f64) -> Option<(Summary, Summary)> {
        let (a, b): (Vec<_>, Vec<_>) = self
            .pairs
            .iter()
            .map(|(a, b)| (measure(a), measure(b)))
            .unzip();
        Some((Summary::of(&a)?, Summary::of(&b)?))
    }

    /// Read speed of B, divided by the speed of fio in the same pair.
    pub fn of_direct_read(&self) -> Option<Ratio> {
        let reads = self.direct_reads.iter().map(|read| read.bytes_per_second);
        let loads = self.pairs.iter().filter_map(|(_, b)| b.load.as_ref());
        (self.direct_reads.len() == self.pairs.len())
            .then(|| Ratio::of(reads.zip(loads.map(Load::bytes_per_second))))
            .flatten()
    }
}
