//! The order of the runs: A B, B A, A B, and so on, after one run of each side that does not count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::server::{Host, Server};
use super::{Cache, Cancelled, Case, CaseResult, CompareError, ModelFile, Side};
use crate::compare::measure::{DirectRead, MEASURES, Sample, answers};

/// Runs cases.
#[derive(Debug)]
pub struct Runner<'a> {
    /// Number of runs of each side that count.
    pub pairs: usize,
    /// Tokens of each answer that must be equal before the measurement.
    pub tokens: u32,
    /// Tokens that each measured request generates; 0 skips these requests.
    pub speed_tokens: u32,
    /// Time limit for a server to become ready, and for each answer.
    pub patience: Duration,
    /// Set to cancel: the runner ends soon, and leaves no server.
    pub cancelled: &'a AtomicBool,
}

impl<'a> Runner<'a> {
    /// Runs one case. Calls `told` before each run.
    ///
    /// # Errors
    /// Errors of a server; [`CompareError::Unequal`] before the measurement.
    pub fn run(&self, case: &Case, told: impl Fn(&str)) -> Result<CaseResult, CompareError> {
        let (files_a, files_b) = (
            ModelFile::open(&case.a.model)?,
            ModelFile::open(&case.b.model)?,
        );
        told(&format!("{}: warm-up", case.name));
        let mut result = CaseResult {
            case: case.clone(),
            equal_tokens: self.equal(case)?,
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

    /// Runs both sides once. Checks that they give the same tokens with the same probabilities, unless the case cannot. Returns the
    /// number of compared tokens.
    fn equal(&self, case: &Case) -> Result<usize, CompareError> {
        let (a, b) = (&case.a, &case.b);
        let say = |side| {
            let mut server = Server::start(side, self.host())?;
            server.ready()?;
            server.speak(self.tokens)
        };
        let (said_a, said_b) = (say(a)?, say(b)?);
        if !case.is_equal {
            return Ok(0);
        }
        match answers::first_difference(&said_a, &said_b) {
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
