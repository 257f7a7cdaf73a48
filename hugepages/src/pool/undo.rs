//! Undoing changes: one, those of killed processes, or all.
//!
//! An undo subtracts the difference of its change from the current total. It never goes below the number of pages that others had at the
//! time of the change.

use super::PoolError;
use super::counter::write;
use super::journal::{Change, Holder};
use super::locked_pools::{LockedPools, difference, signed};
use crate::kernel::hvo;

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

impl LockedPools {
    /// Returns the pages of killed holders. Every command that adds pages does this first.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn reap(&mut self) -> Result<Vec<Undone>, PoolError> {
        self.undo_all(|holder| holder.is_some_and(|holder| !holder.is_alive()))
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
    pub(super) fn undo(&mut self, id: u64, at_most: Option<u64>) -> Result<Undone, PoolError> {
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
            let what = self.change(&counter, before, difference(target, now), Some(id), None);
            pages = -self.change_total(&counter, target, what)?;
        } else if left < 0 {
            let total = before.total.saturating_add(left.unsigned_abs());
            let delta = -left + signed(before.surplus);
            let what = self.change(&counter, before, delta, Some(id), None);
            pages = -self.change_total(&counter, total, what)?;
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
}
