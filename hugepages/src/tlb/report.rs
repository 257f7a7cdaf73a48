//! The results of a measurement, for the terminal and for JSON.

use std::time::Duration;

use serde::Serialize;

use super::counters::NoCounter;
use super::memory::Touch;
use super::{Backing, Better, Pages, Ratio, Spec, Stopped, Unavailable};
use crate::stats::Summary;

/// One of the loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// First touch of each page.
    FirstTouch,
    /// Reads all words in order.
    SequentialRead,
    /// Reads random words that do not depend on each other.
    RandomRead,
    /// Reads random words; each word contains the place of the next.
    DependentRead,
}

impl Metric {
    /// In the order in which they run.
    pub const ALL: [Self; 4] = [
        Self::FirstTouch,
        Self::SequentialRead,
        Self::RandomRead,
        Self::DependentRead,
    ];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstTouch => "first touch",
            Self::SequentialRead => "sequential read",
            Self::RandomRead => "random read",
            Self::DependentRead => "dependent read",
        }
    }

    /// Unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::FirstTouch | Self::SequentialRead => "GB/s",
            Self::RandomRead | Self::DependentRead => "ns",
        }
    }

    /// Whether small or large values are better.
    pub fn better(self) -> Better {
        match self {
            Self::FirstTouch | Self::SequentialRead => Better::More,
            Self::RandomRead | Self::DependentRead => Better::Less,
        }
    }
}

/// One loop over one memory, over all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// GB/s, or nanoseconds for each read.
    pub unit: &'static str,
    /// Summary over the rounds.
    #[serde(flatten)]
    pub summary: Summary,
    /// One value for each round.
    pub rounds: Vec<f64>,
    /// Speed compared with base pages. `None` for base pages, and if base pages were not measured.
    pub against_base: Option<Ratio>,
    /// Misses for each read of 8 bytes. `None` without a counter.
    pub dtlb_misses_per_read: Option<Summary>,
}

impl Series {
    /// `None` without rounds.
    pub fn new(metric: Metric, rounds: Vec<f64>, misses: Option<&[f64]>) -> Option<Self> {
        Some(Self {
            unit: metric.unit(),
            summary: Summary::of(&rounds)?,
            rounds,
            against_base: None,
            dtlb_misses_per_read: misses.and_then(Summary::of),
        })
    }
}

/// One memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Backing in the last round, as the kernel reports it.
    pub backing: Backing,
    /// Page faults during the first touch.
    pub page_faults: Summary,
    /// Bytes of all pages, divided by the time to take them.
    pub first_touch: Series,
    /// Bytes read, divided by the time.
    pub sequential_read: Series,
    /// Time for a read of 8 bytes.
    pub random_read: Series,
    /// Time for a read of 8 bytes.
    pub dependent_read: Series,
}

impl Measured {
    fn new(rounds: &[Round]) -> Option<Self> {
        let backing = rounds.last()?.backing.clone();
        let faults: Vec<f64> = rounds.iter().map(|r| r.touch.faults as f64).collect();
        let rate = |r: &Round| r.touch.bytes as f64 / r.touch.time.as_secs_f64() / 1e9;
        let rates = rounds.iter().map(rate).collect();
        let series = |metric, pick: fn(&Round) -> &PerRead, value: fn(f64) -> f64| {
            let values = rounds.iter().map(|round| value(pick(round).ns)).collect();
            let misses: Option<Vec<f64>> = rounds.iter().map(|round| pick(round).misses).collect();
            Series::new(metric, values, misses.as_deref())
        };
        Some(Self {
            backing,
            page_faults: Summary::of(&faults)?,
            first_touch: Series::new(Metric::FirstTouch, rates, None)?,
            // 8 bytes a nanosecond are 8 GB a second.
            sequential_read: series(Metric::SequentialRead, |r| &r.sequential, |ns| 8.0 / ns)?,
            random_read: series(Metric::RandomRead, |r| &r.random, |ns| ns)?,
            dependent_read: series(Metric::DependentRead, |r| &r.dependent, |ns| ns)?,
        })
    }

    /// The series of a loop.
    pub fn series(&self, metric: Metric) -> &Series {
        match metric {
            Metric::FirstTouch => &self.first_touch,
            Metric::SequentialRead => &self.sequential_read,
            Metric::RandomRead => &self.random_read,
            Metric::DependentRead => &self.dependent_read,
        }
    }

    fn series_mut(&mut self, metric: Metric) -> &mut Series {
        match metric {
            Metric::FirstTouch => &mut self.first_touch,
            Metric::SequentialRead => &mut self.sequential_read,
            Metric::RandomRead => &mut self.random_read,
            Metric::DependentRead => &mut self.dependent_read,
        }
    }

    fn compare_with(&mut self, base: &Self) {
        for metric in Metric::ALL {
            let series = self.series_mut(metric);
            let base = &base.series(metric).rounds;
            series.against_base = Ratio::of(&series.rounds, base, metric.better());
        }
    }
}

/// Why a memory was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotMeasured {
    /// The cause.
    pub reason: String,
    /// The hint for the user.
    pub hint: Option<String>,
}

/// Figures, or the reason why they are missing.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Measured in all rounds.
    Measured(Box<Measured>),
    /// Unavailable in at least one round.
    NotMeasured(NotMeasured),
}

/// One kind of pages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Kind of the pages.
    pub pages: Pages,
    /// Its result.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// State of the hardware counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Whether the hardware counted TLB misses.
    pub available: bool,
    /// Why it did not count.
    pub reason: Option<String>,
    /// The hint for the user.
    pub hint: Option<String>,
}

impl Counted {
    fn new(counter: &Result<(), NoCounter>) -> Self {
        let why = counter.as_ref().err();
        Self {
            available: why.is_none(),
            reason: why.map(ToString::to_string),
            hint: why.and_then(NoCounter::hint).map(str::to_owned),
        }
    }
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Bytes that were read of each memory.
    pub size_bytes: u64,
    /// Rounds that count.
    pub repeats: u32,
    /// The hardware's counter.
    pub dtlb_load_misses: Counted,
    /// In the requested order.
    pub memories: Vec<Row>,
}

impl Report {
    pub(super) fn new(
        spec: &Spec,
        counter: &Result<(), NoCounter>,
        outcomes: Vec<(Pages, Result<Vec<Round>, Unavailable>)>,
    ) -> Self {
        let rows = outcomes.into_iter().filter_map(|(pages, outcome)| {
            let outcome = match outcome {
                Ok(rounds) => Outcome::Measured(Box::new(Measured::new(&rounds)?)),
                Err(why) => Outcome::NotMeasured(NotMeasured {
                    reason: why.to_string(),
                    hint: why.hint(),
                }),
            };
            Some(Row { pages, outcome })
        });
        let mut report = Self {
            size_bytes: spec.size.bytes(),
            repeats: spec.repeats,
            dtlb_load_misses: Counted::new(counter),
            memories: rows.collect(),
        };
        report.compare();
        report
    }

    /// Compares everything with base pages if base pages were measured.
    pub fn compare(&mut self) {
        let base = self.measured().find(|(pages, _)| *pages == Pages::Base);
        let Some(base) = base.map(|(_, base)| base.clone()) else {
            return;
        };
        for row in &mut self.memories {
            if let Outcome::Measured(measured) = &mut row.outcome
                && row.pages != Pages::Base
            {
                measured.compare_with(&base);
            }
        }
    }

    /// The memories that have figures.
    pub fn measured(&self) -> impl Iterator<Item = (Pages, &Measured)> {
        self.memories.iter().filter_map(|row| match &row.outcome {
            Outcome::Measured(measured) => Some((row.pages, measured.as_ref())),
            Outcome::NotMeasured(_) => None,
        })
    }
}

/// One round over one memory.
pub(super) struct Round {
    pub backing: Backing,
    pub touch: Touch,
    pub sequential: PerRead,
    pub random: PerRead,
    pub dependent: PerRead,
}

/// For one read of 8 bytes.
pub(super) struct PerRead {
    ns: f64,
    misses: Option<f64>,
}

/// The time and the counted events of a loop.
pub(super) struct Timed<T> {
    pub time: T,
    pub events: Option<u64>,
}

impl Timed<Result<Duration, Stopped>> {
    pub fn per(self, reads: u64) -> Result<PerRead, Stopped> {
        Ok(PerRead {
            ns: self.time?.as_secs_f64() * 1e9 / reads as f64,
            misses: self.events.map(|events| events as f64 / reads as f64),
        })
    }
}
