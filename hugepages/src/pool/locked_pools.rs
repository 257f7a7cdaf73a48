//! Changes to the pools, which can be undone.
//!
//! Each pool has one total, which other programs change too. So a change is a difference: it is made under a lock, logged before
//! and after, and read back. An undo subtracts this difference from the current total. It never goes below the number of pages
//! that others had at the time of the change.

use super::journal::{Change, Holder, Journal};
use super::state_directory::{Lock, State};
use super::{Counter, Counts, PoolError};
use crate::kernel::{HugePageSize, Root};

/// Changes pools. Holds the lock until it is dropped.
#[derive(Debug)]
pub struct LockedPools {
    pub(super) root: Root,
    pub(super) journal: Journal,
    _lock: Lock,
}

impl LockedPools {
    /// Waits for the lock, and completes the log entries of killed commands. `waiting` is called once, after a second.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn open(root: &Root, state: &State, waiting: impl FnOnce()) -> Result<Self, PoolError> {
        let lock = state.lock(waiting)?;
        let journal = Journal::open(root, state)?;
        let mut pools = Self {
            root: root.clone(),
            journal,
            _lock: lock,
        };
        pools.complete_intents()?;
        Ok(pools)
    }

    /// Completes intents without outcome, from the current counters.
    fn complete_intents(&mut self) -> Result<(), PoolError> {
        let open = self.journal.entries.iter();
        let open: Vec<_> = open
            .filter(|e| e.got.is_none() && !e.undone)
            .cloned()
            .collect();
        for entry in open {
            if let Change::Pages { before, delta, .. } = entry.what {
                let now = self.counter(&entry.what)?.read()?.persistent();
                let got = difference(now, before).clamp(delta.min(0), delta.max(0));
                self.journal.happened(entry.id, got)?;
            }
        }
        Ok(())
    }

    /// Logs the intent, writes, reads back and logs the outcome. Returns the growth of the pool.
    pub(super) fn change_total(
        &mut self,
        counter: &Counter,
        total: u64,
        what: Change,
    ) -> Result<i64, PoolError> {
        let Change::Pages { before, delta, .. } = what else {
            return Ok(0);
        };
        let id = self.journal.intend(what)?;
        let written = if delta == 0 {
            Ok(())
        } else {
            counter.set(total)
        };
        let now = counter.read()?.persistent();
        let got = difference(now, before).clamp(delta.min(0), delta.max(0));
        self.journal.happened(id, got)?;
        written.map(|()| got)
    }

    pub(super) fn change(
        &self,
        counter: &Counter,
        now: Counts,
        delta: i64,
        of: Option<u64>,
        holder: Option<Holder>,
    ) -> Change {
        let mut ours = self.journal.ours(counter.size, counter.node);
        if counter.node.is_some() {
            // Pages of the whole machine may be on this node.
            let machine = self.journal.left(counter.size, None);
            ours += machine.iter().map(|(_, left)| left).sum::<i64>();
        }
        Change::Pages {
            bytes: counter.size.bytes(),
            node: counter.node,
            before: now.persistent(),
            delta,
            others: difference(now.persistent(), 0)
                .saturating_sub(ours)
                .max(0)
                .unsigned_abs(),
            of,
            holder,
        }
    }

    pub(super) fn counter(&self, what: &Change) -> Result<Counter, PoolError> {
        match what {
            Change::Pages { bytes, node, .. } => {
                let size = HugePageSize::new(*bytes).ok_or(PoolError::NoPools)?;
                Counter::new(&self.root, size, *node)
            }
            Change::Hvo { .. } => Err(PoolError::NoPools),
        }
    }
}

/// As a difference.
pub(super) fn signed(pages: u64) -> i64 {
    i64::try_from(pages).unwrap_or(i64::MAX)
}

/// `a - b`
pub(super) fn difference(a: u64, b: u64) -> i64 {
    signed(a).saturating_sub(signed(b))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::pool::Wish;

    /// A kernel of files, which grants every request.
    struct Made {
        dir: TempDir,
        root: Root,
    }

    impl Made {
        fn new(total: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::at(dir.path()).unwrap();
            let made = Self { dir, root };
            made.write(
                "proc/meminfo",
                "MemTotal: 1 kB\nMemAvailable: 99999999 kB\n",
            );
            for name in ["free", "resv", "surplus"] {
                made.write(&Self::file(name), "0");
            }
            made.set(total);
            made
        }

        fn file(name: &str) -> String {
            format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages")
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.dir.path().join(Path::new(file));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Sets a total with all pages idle.
        fn set(&self, total: u64) {
            self.write(&Self::file("nr"), &total.to_string());
            self.write(&Self::file("free"), &total.to_string());
        }

        fn total(&self) -> u64 {
            self.counter().read().unwrap().total
        }

        fn counter(&self) -> Counter {
            let size = HugePageSize::new(2 << 20).unwrap();
            Counter::new(&self.root, size, None).unwrap()
        }

        /// Runs one command. Afterwards all pages of the new total are idle.
        fn change<T>(&self, what: impl FnOnce(&mut LockedPools) -> T) -> T {
            let state = State::at(&self.dir.path().join("state")).unwrap();
            let mut pools = LockedPools::open(&self.root, &state, || ()).unwrap();
            let got = what(&mut pools);
            self.set(self.total());
            got
        }

        fn reserve(&self, pages: u64) {
            let wish = Wish {
                pages,
                ..Wish::default()
            };
            self.change(|pools| pools.reserve(&self.counter(), &wish))
                .unwrap();
        }

        /// An intent whose process was killed when the pool had `got` of its pages.
        fn killed(&self, delta: i64, of: Option<u64>, got: i64) {
            let counter = self.counter();
            self.change(|pools| {
                let now = counter.read().unwrap();
                let what = pools.change(&counter, now, delta, of, None);
                pools.journal.intend(what).unwrap();
                let total = now.total.saturating_add_signed(got);
                counter.set(total).unwrap();
            });
        }
    }

    #[test]
    fn a_reservation_that_was_killed_is_undone_as_far_as_it_went() {
        for got in [0, 3, 8] {
            let made = Made::new(5);
            made.killed(8, None, got);
            made.change(LockedPools::restore).unwrap();
            assert_eq!(made.total(), 5, "{got} of 8");
        }
    }

    #[test]
    fn a_release_that_was_killed_is_not_undone_twice() {
        for got in [0, -3, -8] {
            let made = Made::new(5);
            made.reserve(8);
            made.killed(-8, Some(1), got);
            made.change(LockedPools::restore).unwrap();
            assert_eq!(made.total(), 5, "{got} of -8");
        }
    }

    #[test]
    fn what_somebody_else_took_is_not_taken_from_others() {
        let made = Made::new(5);
        made.reserve(8);
        made.set(4);
        let (undone, _) = made.change(LockedPools::restore).unwrap();
        assert_eq!((undone[0].pages, undone[0].theirs, made.total()), (0, 8, 4));
        let (undone, _) = made.change(LockedPools::restore).unwrap();
        assert_eq!(undone, []);
    }

    #[test]
    fn the_journal_is_empty_when_nothing_is_left_to_undo() {
        let made = Made::new(0);
        made.reserve(8);
        made.change(LockedPools::restore).unwrap();
        made.change(|pools| assert_eq!(pools.journal.entries, []));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u64),
        Release(u64),
        Killed { wanted: u64, got: u64 },
        Others(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u64..50).prop_map(Step::Reserve),
            (1u64..50).prop_map(Step::Release),
            (1u64..50, 0u64..50).prop_map(|(wanted, got)| Step::Killed {
                wanted,
                got: got.min(wanted)
            }),
            (1u64..50).prop_map(Step::Others),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_happens_restore_leaves_the_pages_of_others(
            mut others in 0u64..50,
            steps in prop::collection::vec(step(), 0..12),
        ) {
            let made = Made::new(others);
            for step in steps {
                match step {
                    Step::Reserve(pages) => made.reserve(pages),
                    // A release of more pages than the tool added fails.
                    Step::Release(pages) => {
                        let counter = made.counter();
                        let _ = made.change(|pools| pools.release(&counter, Some(pages), false));
                    }
                    Step::Killed { wanted, got } => {
                        made.killed(signed(wanted), None, signed(got));
                        // The next command of any kind completes the intent from the counters.
                        made.change(|_| ());
                    }
                    Step::Others(pages) => {
                        others += pages;
                        made.set(made.total() + pages);
                    }
                }
                prop_assert!(made.total() >= others);
            }
            made.change(LockedPools::restore).unwrap();
            prop_assert_eq!(made.total(), others);
        }
    }
}
