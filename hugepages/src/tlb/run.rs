//! The order of the rounds, and one round over one memory.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use super::counters::Events;
use super::memory::{Mapping, TouchError};
use super::pages::check_pool;
use super::report::{Round, Timed};
use super::{Pages, Report, Spec, Stopped, TlbError, Unavailable, room, work};
use crate::kernel::Root;
use crate::size::ByteSize;

/// Progress, for the terminal.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Number of completed memories, over all rounds.
    pub done: u64,
    /// Memories of all rounds.
    pub of: u64,
    /// The next memory.
    pub pages: Pages,
}

/// Runs the measurement. It pins the calling thread to its CPU, so that all memories are on the same node.
///
/// # Errors
/// [`TlbError`]. If one kind of memory is unavailable, its row in the report contains the reason.
pub fn run(
    root: &Root,
    spec: &Spec,
    stop: &AtomicBool,
    mut on_step: impl FnMut(Step),
) -> Result<Report, TlbError> {
    check(root, spec)?;
    stay_on_this_cpu();
    let bytes = spec.size.bytes();
    let mut events = Events::dtlb_load_misses();
    let mut taken: Vec<Taken> = spec.pages.iter().map(|pages| Taken::new(*pages)).collect();
    let rounds = u64::from(spec.repeats) + 1;
    let of = rounds * taken.len() as u64;
    let mut done = 0;
    for number in 0..rounds {
        let mut order: Vec<usize> = (0..taken.len()).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let memory = &mut taken[index];
            let pages = memory.pages;
            on_step(Step { done, of, pages });
            done += 1;
            if memory.unavailable.is_some() {
                continue;
            }
            match round(root, pages, bytes, number, events.as_mut().ok(), stop) {
                Ok(_) if number == 0 => {}
                Ok(round) => memory.rounds.push(round),
                Err(RoundError::Unavailable(why)) => memory.unavailable = Some(why),
                Err(RoundError::Fatal(error)) => return Err(error),
            }
        }
    }
    let counter = events.map(|_| ());
    let rows = taken.into_iter().map(|taken| {
        let outcome = match taken.unavailable {
            Some(why) => Err(why),
            None => Ok(taken.rounds),
        };
        (taken.pages, outcome)
    });
    Ok(Report::new(spec, &counter, rows.collect()))
}

fn check(root: &Root, spec: &Spec) -> Result<(), TlbError> {
    let size = spec.size;
    if size < Spec::MIN_SIZE {
        return Err(TlbError::TooSmall { size });
    }
    if spec.repeats == 0 {
        return Err(TlbError::NoRounds);
    }
    // Pages of a pool are already taken, so only the other memories reduce the available memory.
    let takes_memory = |pages: &Pages| !matches!(pages, Pages::Huge(_));
    if let Some(room) = room::room(root)
        && spec.pages.iter().any(takes_memory)
        && size > room
    {
        return Err(TlbError::NoRoom { size, room });
    }
    Ok(())
}

fn stay_on_this_cpu() {
    let mut this = CpuSet::new();
    this.set(sched_getcpu());
    // Without this right, the figures spread a little more.
    let _ = sched_setaffinity(None, &this);
}

/// Measurements of one memory so far.
struct Taken {
    pages: Pages,
    rounds: Vec<Round>,
    unavailable: Option<Unavailable>,
}

impl Taken {
    fn new(pages: Pages) -> Self {
        Self {
            pages,
            rounds: Vec::new(),
            unavailable: None,
        }
    }
}

enum RoundError {
    /// This memory is unavailable.
    Unavailable(Unavailable),
    /// The whole measurement failed.
    Fatal(TlbError),
}

impl From<Unavailable> for RoundError {
    fn from(why: Unavailable) -> Self {
        Self::Unavailable(why)
    }
}

impl From<Stopped> for RoundError {
    fn from(stopped: Stopped) -> Self {
        Self::Fatal(stopped.into())
    }
}

impl From<TouchError> for RoundError {
    fn from(error: TouchError) -> Self {
        match error {
            TouchError::Unavailable(why) => why.into(),
            TouchError::Stopped(stopped) => stopped.into(),
        }
    }
}

/// Maps memory, runs all loops on it, and unmaps it.
fn round(
    root: &Root,
    pages: Pages,
    bytes: u64,
    number: u64,
    events: Option<&mut Events>,
    stop: &AtomicBool,
) -> Result<Round, RoundError> {
    check_pool(root, pages, bytes)?;
    let (mut memory, touch) = Mapping::new(pages, bytes)?.touch(stop)?;
    let backing = memory
        .backing()
        .map_err(|error| RoundError::Fatal(TlbError::NoBacking(error)))?;
    if let Pages::Huge(size) = pages
        && backing.kernel_page_bytes != size.bytes()
    {
        return Err(RoundError::Unavailable(Unavailable::OtherPages {
            got: ByteSize::new(backing.kernel_page_bytes),
        }));
    }

    let words = memory.words();
    let in_order = 1 + (PASS_BYTES / bytes) as u32;
    let reads = (words.len() as u64).clamp(MIN_READS, MAX_READS);
    let mut counted = Counting(events);
    let sequential = counted.of(|| work::sequential(words, in_order, stop));
    work::link(words, number, stop)?;
    let random = counted.of(|| work::random(words, reads, number, stop));
    let dependent = counted.of(|| work::dependent(words, reads, stop));
    let sequential_reads = words.len() as u64 * u64::from(in_order);
    Ok(Round {
        backing,
        touch,
        sequential: sequential.per(sequential_reads)?,
        random: random.per(reads)?,
        dependent: dependent.per(reads)?,
    })
}

/// Minimum number of bytes for sequential read: small memories are read several times, so that the clock can measure the time.
const PASS_BYTES: u64 = 256 << 20;
/// Number of random reads: enough for the clock, and at most about a second on the slowest memory.
const MIN_READS: u64 = 1 << 18;
const MAX_READS: u64 = 1 << 21;

/// Runs the loops, and counts the events of each loop if a counter is available.
struct Counting<'a>(Option<&'a mut Events>);

impl Counting<'_> {
    fn of(
        &mut self,
        work: impl FnOnce() -> Result<Duration, Stopped>,
    ) -> Timed<Result<Duration, Stopped>> {
        let (time, events) = match &mut self.0 {
            Some(events) => events.during(work),
            None => (work(), None),
        };
        Timed { time, events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::Outcome;

    fn spec(size: u64, pages: &[Pages]) -> Spec {
        Spec {
            size: ByteSize::new(size),
            pages: pages.to_vec(),
            repeats: 2,
        }
    }

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn what_makes_no_sense_is_refused_before_memory_is_taken() {
        let root = Root::system();
        let error = |spec: &Spec| run(&root, spec, &GOES_ON, |_| ()).unwrap_err();
        assert!(matches!(
            error(&spec(0, &[Pages::Base])),
            TlbError::TooSmall { .. }
        ));
        let none = Spec {
            repeats: 0,
            ..spec(1 << 20, &[Pages::Base])
        };
        assert!(matches!(error(&none), TlbError::NoRounds));
        let huge = error(&spec(1 << 60, &[Pages::Base]));
        assert!(matches!(huge, TlbError::NoRoom { .. }));
        let hint = huge.hint().unwrap();
        assert!(hint.contains("--size "), "{hint}");
    }

    #[test]
    fn a_round_more_than_counts_is_run_forward_and_back() {
        let mut order = Vec::new();
        let spec = spec(1 << 20, &[Pages::Base, Pages::Thp]);
        let report = run(&Root::system(), &spec, &GOES_ON, |step| {
            order.push(step.pages);
        })
        .unwrap();
        let (a, b) = (Pages::Base, Pages::Thp);
        assert_eq!(order, [a, b, b, a, a, b]);
        for row in &report.memories {
            // On a kernel without THP, the row has the reason.
            if let Outcome::Measured(measured) = &row.outcome {
                assert_eq!(measured.random_read.rounds.len(), 2);
            }
        }
    }

    #[test]
    fn a_pool_that_the_machine_does_not_have_is_a_row_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        let spec = spec(1 << 20, &["2M".parse().unwrap()]);
        let report = run(&root, &spec, &GOES_ON, |_| ()).unwrap();
        let Outcome::NotMeasured(why) = &report.memories[0].outcome else {
            panic!("{report:?}");
        };
        assert_eq!(why.reason, "this kernel has no pages of 2 MiB");
    }
}
