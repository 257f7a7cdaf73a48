//! The order of the runs.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::server::Server;
use super::{Cache, CompareError, DirectRead, ModelFile, Ratio, Sample, Side};
use crate::stats::Summary;

/// Two sides, and what the page cache holds when they start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Such as `cold q8_0`.
    pub name: String,
    /// At the start of each run.
    pub cache: Cache,
    /// The baseline.
    pub a: Side,
    /// What is compared with it.
    pub b: Side,
    /// Whether fio reads the model of B between the pairs.
    pub direct_read: bool,
}

/// All runs of a case, none left out but the first of each side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    /// What was run.
    pub case: Case,
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

/// The user does not want to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

/// Runs cases.
#[derive(Debug)]
pub struct Runner<'a> {
    /// How many runs of each side count.
    pub pairs: usize,
    /// Tokens that both sides have to agree on before anything is timed.
    pub tokens: u32,
    /// Set by whoever wants to end this: it ends within a moment, with no server left.
    pub cancelled: &'a AtomicBool,
}

impl Runner<'_> {
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
        self.equal(&case.a, &case.b)?;

        let mut result = CaseResult {
            case: case.clone(),
            pairs: Vec::new(),
            direct_reads: Vec::new(),
        };
        for pair in 0..self.pairs {
            let first = |side: &Side| {
                told(&format!(
                    "{}: pair {} of {}, {}",
                    case.name,
                    pair + 1,
                    self.pairs,
                    side.name
                ));
            };
            let a = || {
                first(&case.a);
                self.sample(&case.a, &files_a, case.cache)
            };
            let b = || {
                first(&case.b);
                self.sample(&case.b, &files_b, case.cache)
            };
            // A B, B A, A B, …
            let samples = if pair % 2 == 0 {
                let a = a()?;
                (a, b()?)
            } else {
                let b = b()?;
                (a()?, b)
            };
            result.pairs.push(samples);
            if case.direct_read {
                files_b.prepare(Cache::Cold)?;
                result
                    .direct_reads
                    .extend(DirectRead::measure(&files_b.paths()[0]));
            }
        }
        Ok(result)
    }

    /// Both say the same, with the same probabilities.
    fn equal(&self, a: &Side, b: &Side) -> Result<(), CompareError> {
        let say = |side| {
            let mut server = Server::start(side, self.cancelled)?;
            server.ready()?;
            server.speak(self.tokens)
        };
        let (said_a, said_b) = (say(a)?, say(b)?);
        if said_a == said_b {
            return Ok(());
        }
        Err(CompareError::Unequal {
            a: a.name.clone(),
            b: b.name.clone(),
            said_a,
            said_b,
        })
    }

    fn sample(&self, side: &Side, files: &ModelFile, cache: Cache) -> Result<Sample, CompareError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Cancelled.into());
        }
        files.prepare(cache)?;
        Server::start(side, self.cancelled)?.measure(|| files.cached())
    }
}
