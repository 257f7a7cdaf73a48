//! The order of the runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::server::{Host, Server};
use super::{
    Cache, Cancelled, CompareError, DirectRead, MEASURES, ModelFile, Ratio, Sample, Side, speech,
};
use crate::stats::Summary;

/// Two sides, and what the page cache holds when they start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Such as `cold`, of [`super::CASES`].
    pub name: String,
    /// For people: which model.
    pub model: String,
    /// At the start of each run.
    pub cache: Cache,
    /// The baseline.
    pub a: Side,
    /// What is compared with it.
    pub b: Side,
    /// Whether fio reads the model of B between the pairs.
    pub direct_read: bool,
    /// Bytes of huge pages that B was planned to take; 0 where it takes none of a pool.
    pub planned_bytes: u64,
    /// Bytes of what B was planned to have on ordinary memory: less than a page each.
    pub planned_ordinary_bytes: u64,
}

/// All runs of a case, none left out but the first of each side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    /// What was run.
    pub case: Case,
    /// Tokens that both sides had in common, bit for bit, before anything was timed.
    pub equal_tokens: usize,
    /// B over A of each measure that is above zero in all runs, by its id.
    pub ratios: BTreeMap<&'static str, Ratio>,
    /// One of A and one of B each, whichever came first.
    pub pairs: Vec<(Sample, Sample)>,
    /// What the disk gave at that time.
    pub direct_reads: Vec<DirectRead>,
}

impl CaseResult {
    /// B over A of any measure.
    pub fn ratio(&self, measure: impl Fn(&Sample) -> f64) -> Option<Ratio> {
        Ratio::of(self.pairs.iter().map(|(a, b)| (measure(a), measure(b))))
    }

    /// Of A and of B.
    pub fn summaries(&self, measure: impl Fn(&Sample) -> f64) -> Option<(Summary, Summary)> {
        let (a, b): (Vec<_>, Vec<_>) = self
            .pairs
            .iter()
            .map(|(a, b)| (measure(a), measure(b)))
            .unzip();
        Some((Summary::of(&a)?, Summary::of(&b)?))
    }

    /// How fast B read its model, over what fio read in the same pair.
    pub fn of_direct_read(&self) -> Option<Ratio> {
        let reads = self.direct_reads.iter().map(|read| read.bytes_per_second);
        let loads = self.pairs.iter().filter_map(|(_, b)| b.load.as_ref());
        (self.direct_reads.len() == self.pairs.len())
            .then(|| Ratio::of(reads.zip(loads.map(super::Load::bytes_per_second))))
            .flatten()
    }
}

/// Runs cases.
#[derive(Debug)]
pub struct Runner<'a> {
    /// How many runs of each side count.
    pub pairs: usize,
    /// Tokens of each answer that both sides have to agree on before anything is timed.
    pub tokens: u32,
    /// Tokens that each request to time them generates; 0 times none.
    pub speed_tokens: u32,
    /// How long a server may take to become ready, and to answer.
    pub patience: Duration,
    /// Set by whoever wants to end this: it ends within a moment, with no server left.
    pub cancelled: &'a AtomicBool,
}

impl<'a> Runner<'a> {
    /// One case. `told` is called before each run with what comes.
    ///
    /// # Errors
    /// Whatever happened to a server; [`CompareError::Unequal`] before anything is timed.
    pub fn run(&self, case: &Case, told: impl Fn(&str)) -> Result<CaseResult, CompareError> {
        let (files_a, files_b) = (
            ModelFile::open(&case.a.model)?,
            ModelFile::open(&case.b.model)?,
        );
        told(&format!("{}: warm-up", case.name));
        let mut result = CaseResult {
            case: case.clone(),
            equal_tokens: self.equal(&case.a, &case.b)?,
            ratios: BTreeMap::new(),
            pairs: Vec::new(),
            direct_reads: Vec::new(),
        };
        for pair in 0..self.pairs {
            let run = |side: &Side, files| {
                let (number, all) = (pair + 1, self.pairs);
                told(&format!(
                    "{}: pair {number} of {all}, {}",
                    case.name, side.name
                ));
                self.sample(side, files, case.cache)
            };
            // A B, B A, A B, …
            let samples = if pair % 2 == 0 {
                let a = run(&case.a, &files_a)?;
                (a, run(&case.b, &files_b)?)
            } else {
                let b = run(&case.b, &files_b)?;
                (run(&case.a, &files_a)?, b)
            };
            result.pairs.push(samples);
            if case.direct_read {
                files_b.prepare(Cache::Cold)?;
                result
                    .direct_reads
                    .extend(DirectRead::measure(&files_b.paths()[0]));
            }
        }
        result.ratios = MEASURES
            .iter()
            .filter_map(|measure| Some((measure.id, result.ratio(measure.of)?)))
            .collect();
        Ok(result)
    }

    /// Both say the same, with the same probabilities. Returns how many tokens that was shown for.
    fn equal(&self, a: &Side, b: &Side) -> Result<usize, CompareError> {
        let say = |side| {
            let mut server = Server::start(side, self.host())?;
            server.ready()?;
            server.speak(self.tokens)
        };
        let (said_a, said_b) = (say(a)?, say(b)?);
        match speech::first_difference(&said_a, &said_b) {
            None => Ok(said_a.iter().map(Vec::len).sum()),
            Some(difference) => Err(CompareError::Unequal {
                a: a.name.clone(),
                b: b.name.clone(),
                difference: Box::new(difference),
            }),
        }
    }

    fn sample(&self, side: &Side, files: &ModelFile, cache: Cache) -> Result<Sample, CompareError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Cancelled.into());
        }
        files.prepare(cache)?;
        Server::start(side, self.host())?.measure(self.speed_tokens, || files.cached())
    }

    pub(super) fn host(&self) -> Host<'a> {
        Host {
            patience: self.patience,
            cancelled: self.cancelled,
            cgroup: None,
        }
    }
}
