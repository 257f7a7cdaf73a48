//! Returning idle pages that this tool added.

use super::journal::Change;
use super::locked_pools::{LockedPools, signed};
use super::{Counter, PoolError};
use crate::kernel::User;

impl LockedPools {
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
        self.settle(counter)?;
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
            let what = self.change(counter, before, -signed(missing), None, None);
            self.change_total(counter, before.persistent() - missing, what)?;
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
        let ours: u64 = self.released(counter).iter().map(|(_, left)| left).sum();
        let ours = ours.saturating_sub(self.lost(counter)?);
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

    /// Our pages that another program took from the pool. Pages that were there before ours count as theirs.
    fn lost(&self, counter: &Counter) -> Result<u64, PoolError> {
        let left = self.journal.left(counter.size, counter.node);
        let Some((newest, _)) = left.last() else {
            return Ok(0);
        };
        let Change::Pages { others, .. } = newest.what else {
            return Ok(0);
        };
        let ours: i64 = left.iter().map(|(_, left)| left).sum();
        let there = counter.read()?.persistent().saturating_sub(others);
        Ok(ours.max(0).unsigned_abs().saturating_sub(there))
    }

    /// Records that lost pages need no return.
    fn settle(&mut self, counter: &Counter) -> Result<(), PoolError> {
        let mut lost = self.lost(counter)?;
        let now = counter.read()?;
        for (id, left) in self.released(counter).into_iter().rev() {
            let step = lost.min(left);
            lost -= step;
            if step > 0 {
                let what = self.change(counter, now, -signed(step), Some(id), None);
                let settled = self.journal.intend(what)?;
                self.journal.happened(settled, -signed(step))?;
            }
            if step == left {
                self.journal.undone(id)?;
            }
        }
        Ok(())
    }
}
