//! Changes to the pools, which can be undone.
//!
//! Each pool has one total, which other programs change too. So a change is a difference: it is made under a lock, logged before
//! and after, and read back. An undo subtracts this difference from the current total. It never goes below the number of pages
//! that others had at the time of the change.

use super::counter::write;
use super::journal::{Change, Holder, Journal};
use super::state_directory::{Lock, State};
use super::{Counter, Counts, PoolError};
use crate::kernel::{HugePageSize, Root, User, hvo, meminfo, sizes};
use crate::size::ByteSize;

/// Tries of `--try-hard`. Two tries without new pages end it earlier.
const TRIES: u32 = 10;

/// A requested change.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Pages to add.
    pub pages: u64,
    /// Accept at least this many pages.
    pub at_least: Option<u64>,
    /// Compact memory, drop caches and try again, as long as this adds pages.
    pub try_hard: bool,
    /// Split idle larger pages if pages are still missing.
    pub demote: bool,
    /// Add pages even if little memory stays available.
    pub force: bool,
    /// Return the pages when this process is dead.
    pub holder: Option<Holder>,
}

/// The result of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reserved {
    /// For [`LockedPools::give_back`]. `None` if no page was needed.
    pub id: Option<u64>,
    /// Growth of the pool, in pages.
    pub added: u64,
    /// Counters before the change.
    pub before: Counts,
    /// Counters after the change.
    pub after: Counts,
}

/// The result of one undo.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Undone {
    /// Page size of the pool, in bytes.
    pub page_bytes: u64,
    /// `None` is the whole machine.
    pub node: Option<u32>,
    /// Pages returned; negative for pages added again.
    pub pages: i64,
    /// Pages that are left to return.
    pub left: i64,
    /// Pages that stay, because another program made the pool smaller and the rest counts as its pages.
    pub theirs: u64,
}

/// Changes pools. Holds the lock until it is dropped.
#[derive(Debug)]
pub struct LockedPools {
    root: Root,
    journal: Journal,
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
        pools.settle()?;
        Ok(pools)
    }

    /// Completes intents without outcome, from the current counters.
    fn settle(&mut self) -> Result<(), PoolError> {
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

    /// Returns the pages of killed holders. Every command that adds pages does this first.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn reap(&mut self) -> Result<Vec<Undone>, PoolError> {
        self.undo_all(|holder| holder.is_some_and(|holder| !holder.is_alive()))
    }

    /// Adds pages.
    ///
    /// # Errors
    /// [`PoolError::Memory`] and [`PoolError::Short`] with nothing changed, and others.
    pub fn reserve(&mut self, counter: &Counter, wish: &Wish) -> Result<Reserved, PoolError> {
        counter.writable()?;
        let before = counter.read()?;
        let mut reserved = Reserved {
            id: None,
            added: 0,
            before,
            after: before,
        };
        if wish.pages == 0 {
            return Ok(reserved);
        }
        if !wish.force {
            enough_memory(&self.root, counter.size, wish.pages)?;
        }
        let goal = before.total.saturating_add(wish.pages);
        // The kernel turns surplus pages into persistent pages first, and these pages then count as ours.
        let delta = signed(wish.pages.saturating_add(before.surplus));
        let id = self
            .journal
            .intend(self.pages(counter, before, delta, None, wish.holder))?;
        let grown = self.grow(counter, goal, wish);
        let after = counter.read()?;
        let got = difference(after.persistent(), before.persistent()).clamp(0, delta);
        self.journal.happened(id, got)?;
        grown?;
        let mut ids = vec![id];
        reserved.added = after.total.saturating_sub(before.total);
        if reserved.added < wish.pages && wish.demote {
            ids.extend(self.demote(counter, wish.pages - reserved.added, wish.holder)?);
        }
        reserved.after = counter.read()?;
        reserved.added = reserved.after.total.saturating_sub(before.total);
        reserved.id = Some(id);
        if reserved.added < wish.at_least.unwrap_or(wish.pages).min(wish.pages) {
            let usable = reserved.after.idle();
            for id in ids.into_iter().rev() {
                self.undo(id, None)?;
            }
            return Err(PoolError::Short {
                size: counter.size,
                wanted: wish.pages,
                got: reserved.added,
                usable,
            });
        }
        Ok(reserved)
    }

    /// Sets a total, and tries again as long as this adds pages.
    fn grow(&self, counter: &Counter, goal: u64, wish: &Wish) -> Result<(), PoolError> {
        counter.set(goal)?;
        let (mut last, mut in_vain) = (counter.read()?.total, 0);
        for _ in 0..TRIES {
            if !wish.try_hard || last >= goal || in_vain == 2 {
                break;
            }
            // Errors are ignored, because both files only help: some kernels lack them.
            let _ = write(&self.root.path("/proc/sys/vm/drop_caches"), "1");
            let _ = write(&self.root.path("/proc/sys/vm/compact_memory"), "1");
            counter.set(goal)?;
            let now = counter.read()?.total;
            in_vain = if now > last { 0 } else { in_vain + 1 };
            last = now;
        }
        Ok(())
    }

    /// Splits idle pages of the next larger size to get the missing pages. Returns the entries, oldest first.
    fn demote(
        &mut self,
        small: &Counter,
        missing: u64,
        holder: Option<Holder>,
    ) -> Result<Vec<u64>, PoolError> {
        let larger = sizes::all(&self.root);
        let Some(size) = larger.into_iter().find(|size| *size > small.size) else {
            return Ok(Vec::new());
        };
        let large = Counter::new(&self.root, size, small.node)?;
        let (had_large, had_small) = (large.read()?, small.read()?);
        let ratio = size.bytes() / small.size.bytes();
        let count = missing.div_ceil(ratio).min(had_large.idle());
        if count == 0 {
            return Ok(Vec::new());
        }
        let (less, more) = (-signed(count), signed(count * ratio));
        let first = self.pages(&large, had_large, less, None, holder);
        let first = self.journal.intend(first)?;
        let second = self.pages(small, had_small, more, None, holder);
        let second = self.journal.intend(second)?;
        let split = large.demote(count);
        let got = difference(large.read()?.persistent(), had_large.persistent());
        self.journal.happened(first, got.clamp(less, 0))?;
        let got = difference(small.read()?.persistent(), had_small.persistent());
        self.journal.happened(second, got.clamp(0, more))?;
        split?;
        Ok(vec![first, second])
    }

    /// Switches on HVO for pages that are added from now on. Returns `false` if HVO was on.
    ///
    /// # Errors
    /// [`PoolError::NoHvo`] and others.
    pub fn hvo(&mut self) -> Result<bool, PoolError> {
        let path = self.root.path(hvo::SETTING);
        let Some(before) = hvo::setting(&self.root) else {
            return Err(PoolError::NoHvo(path));
        };
        if before == 1 {
            return Ok(false);
        }
        let id = self.journal.intend(Change::Hvo { before })?;
        write(&path, "1")?;
        self.journal.happened(id, 0)?;
        Ok(true)
    }

    /// Returns idle pages that this tool added to the kernel: `pages` of them, or all. Returns their number.
    ///
    /// # Errors
    /// [`PoolError::InUse`] and [`PoolError::NotOurs`] with nothing changed, and others.
    pub fn release(
        &mut self,
        counter: &Counter,
        pages: Option<u64>,
        force: bool,
    ) -> Result<u64, PoolError> {
        counter.writable()?;
        let wanted = self.releasable(counter, pages, force)?;
        let before = counter.read()?;
        let left = self.released(counter);
        let mut missing = wanted;
        for (id, left) in left.into_iter().rev() {
            let step = missing.min(left);
            if step > 0 {
                self.undo(id, Some(step))?;
                missing -= step;
            }
        }
        if missing > 0 {
            let before = counter.read()?;
            let missing = missing.min(before.persistent());
            let what = self.pages(counter, before, -signed(missing), None, None);
            self.write_down(counter, before.persistent() - missing, what)?;
        }
        let after = counter.read()?.persistent();
        Ok(before.persistent().saturating_sub(after))
    }

    /// How many pages [`LockedPools::release`] would return.
    ///
    /// # Errors
    /// As [`LockedPools::release`].
    pub fn releasable(
        &self,
        counter: &Counter,
        pages: Option<u64>,
        force: bool,
    ) -> Result<u64, PoolError> {
        let size = counter.size;
        let ours = self.released(counter).iter().map(|(_, left)| left).sum();
        let wanted = pages.unwrap_or(ours);
        if wanted > ours && !force {
            return Err(PoolError::NotOurs { size, wanted, ours });
        }
        let idle = counter.read()?.idle();
        if wanted > idle {
            return Err(PoolError::InUse {
                size,
                wanted,
                idle,
                users: User::all(&self.root),
            });
        }
        Ok(wanted)
    }

    /// Entries that a release may use, oldest first, without those of live holders.
    fn released(&self, counter: &Counter) -> Vec<(u64, u64)> {
        let left = self.journal.left(counter.size, counter.node).into_iter();
        left.filter(|(entry, left)| *left > 0 && !entry.is_held())
            .map(|(entry, left)| (entry.id, left.unsigned_abs()))
            .collect()
    }

    /// The changes that [`LockedPools::restore`] would undo, newest first.
    pub fn restorable(&self) -> (Vec<Undone>, usize) {
        let open: Vec<_> = self
            .journal
            .entries
            .iter()
            .rev()
            .filter(|e| !e.undone)
            .collect();
        let held = open.iter().filter(|entry| entry.is_held()).count();
        let undone = open.into_iter().filter(|entry| !entry.is_held());
        let undone = undone.filter_map(|entry| match entry.what {
            Change::Pages {
                bytes,
                node,
                of: None,
                ..
            } => Some(Undone {
                page_bytes: bytes,
                node,
                pages: self.journal.outstanding(entry.id),
                left: 0,
                theirs: 0,
            }),
            _ => None,
        });
        (undone.collect(), held)
    }

    /// Undoes all changes, newest first, except those of live holders. The second value is the number of live holders.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn restore(&mut self) -> Result<(Vec<Undone>, usize), PoolError> {
        let dead = |holder: Option<Holder>| holder.is_none_or(|holder| !holder.is_alive());
        let undone = self.undo_all(dead)?;
        let open = self.journal.entries.iter();
        let held = open.filter(|entry| !entry.undone && entry.is_held());
        Ok((undone, held.count()))
    }

    fn undo_all(
        &mut self,
        chosen: impl Fn(Option<Holder>) -> bool,
    ) -> Result<Vec<Undone>, PoolError> {
        let entries: Vec<_> = self.journal.entries.iter().rev().cloned().collect();
        let mut undone = Vec::new();
        for entry in entries.into_iter().filter(|entry| !entry.undone) {
            match entry.what {
                Change::Pages {
                    of: None, holder, ..
                } if chosen(holder) => {
                    undone.push(self.undo(entry.id, None)?);
                }
                Change::Hvo { before } if chosen(None) => {
                    write(&self.root.path(hvo::SETTING), &before.to_string())?;
                    self.journal.undone(entry.id)?;
                }
                _ => {}
            }
        }
        Ok(undone)
    }

    /// Undoes one reservation.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn give_back(&mut self, id: u64) -> Result<Undone, PoolError> {
        self.undo(id, None)
    }

    /// Undoes `at_most` pages of an entry, or all its pages.
    fn undo(&mut self, id: u64, at_most: Option<u64>) -> Result<Undone, PoolError> {
        let entry = self.journal.entries.iter().find(|entry| entry.id == id);
        let Some((what, false)) = entry.map(|entry| (entry.what.clone(), entry.undone)) else {
            return Err(PoolError::Remains(format!(
                "entry {id} of the journal was already undone"
            )));
        };
        let Change::Pages {
            bytes,
            node,
            others,
            ..
        } = what
        else {
            return Err(PoolError::Remains(format!(
                "entry {id} of the journal holds no pages"
            )));
        };
        let counter = self.counter(&what)?;
        let before = counter.read()?;
        let now = before.persistent();
        let left = self.journal.outstanding(id);
        let mut theirs = 0;
        let mut pages = 0;
        if left > 0 {
            let step = left.unsigned_abs().min(at_most.unwrap_or(u64::MAX));
            let rest = (self.journal.ours(counter.size, node) - signed(step)).max(0);
            // Another program may have made the pool smaller, so keep the pages that others had before.
            let floor = now.min(others.saturating_add(rest.unsigned_abs()));
            let target = now.saturating_sub(step).max(floor);
            theirs = step - (now - target);
            let what = self.pages(&counter, before, difference(target, now), Some(id), None);
            pages = -self.write_down(&counter, target, what)?;
        } else if left < 0 {
            let total = before.total.saturating_add(left.unsigned_abs());
            let delta = -left + signed(before.surplus);
            let what = self.pages(&counter, before, delta, Some(id), None);
            pages = -self.write_down(&counter, total, what)?;
        }
        let left = self.journal.outstanding(id);
        // All pages were returned, or the rest now counts as pages of others.
        if left.unsigned_abs() <= theirs || left == 0 {
            self.journal.undone(id)?;
        }
        Ok(Undone {
            page_bytes: bytes,
            node,
            pages,
            left: left - signed(theirs).min(left.max(0)),
            theirs,
        })
    }

    /// Logs the intent, writes, reads back and logs the outcome. Returns the growth of the pool.
    fn write_down(
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

    fn pages(
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

    fn counter(&self, what: &Change) -> Result<Counter, PoolError> {
        match what {
            Change::Pages { bytes, node, .. } => {
                let size = HugePageSize::new(*bytes).ok_or(PoolError::NoPools)?;
                Counter::new(&self.root, size, *node)
            }
            Change::Hvo { .. } => Err(PoolError::NoPools),
        }
    }
}

/// Checks that the machine keeps enough memory without these pages: 1 GiB or 5 %, whichever is more.
///
/// # Errors
/// [`PoolError::Memory`]
pub fn enough_memory(root: &Root, size: HugePageSize, pages: u64) -> Result<(), PoolError> {
    let meminfo = meminfo::read(root)
        .map_err(|source| PoolError::io("read", &root.path(meminfo::PATH), source))?;
    let bytes = |name| meminfo.bytes(name).unwrap_or(0);
    let available = bytes("MemAvailable");
    let keep = (bytes("MemTotal") / 20).max(1 << 30);
    let need = pages.saturating_mul(size.bytes());
    if available >= need.saturating_add(keep) {
        return Ok(());
    }
    Err(PoolError::Memory {
        added: pages,
        need: ByteSize::new(need),
        available: ByteSize::new(available),
        keep: ByteSize::new(keep),
    })
}

fn signed(pages: u64) -> i64 {
    i64::try_from(pages).unwrap_or(i64::MAX)
}

fn difference(a: u64, b: u64) -> i64 {
    signed(a).saturating_sub(signed(b))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

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
                let what = pools.pages(&counter, now, delta, of, None);
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
