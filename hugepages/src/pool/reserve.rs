//! Adding pages to a pool.

use super::counter::write;
use super::enough_memory::enough_memory;
use super::journal::Holder;
use super::locked_pools::{LockedPools, difference, signed};
use super::{Counter, Counts, PoolError};
use crate::kernel::sizes;

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

impl LockedPools {
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
            .intend(self.change(counter, before, delta, None, wish.holder))?;
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
        let first = self.change(&large, had_large, less, None, holder);
        let first = self.journal.intend(first)?;
        let second = self.change(small, had_small, more, None, holder);
        let second = self.journal.intend(second)?;
        let split = large.demote(count);
        let got = difference(large.read()?.persistent(), had_large.persistent());
        self.journal.happened(first, got.clamp(less, 0))?;
        let got = difference(small.read()?.persistent(), had_small.persistent());
        self.journal.happened(second, got.clamp(0, more))?;
        split?;
        Ok(vec![first, second])
    }
}
