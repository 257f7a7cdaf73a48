//! Huge pages for the cases: free pages, and pages that a lease adds.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use anyhow::Result;

use hugepages::compare::{Cancelled, CompareError};
use hugepages::kernel::{self, HugePageSize, Root};
use hugepages::pool::lease::{self, Answer, Lease};

/// Number of pages of each size.
pub type Wanted = BTreeMap<HugePageSize, u64>;

/// Why a case gets no pages, and the hint for the user.
#[derive(Debug)]
pub struct NoPages {
    pub reason: String,
    pub hint: Option<String>,
}

/// Pages that are held for the running case.
pub struct Pages<'a> {
    no_reserve: bool,
    cancelled: &'a AtomicBool,
    wanted: Wanted,
    leases: Vec<Lease>,
}

impl<'a> Pages<'a> {
    pub fn new(no_reserve: bool, cancelled: &'a AtomicBool) -> Self {
        Self {
            no_reserve,
            cancelled,
            wanted: Wanted::new(),
            leases: Vec::new(),
        }
    }

    /// Holds exactly these pages: adds the missing ones, and first returns pages that the last case needed.
    pub fn ensure(&mut self, wanted: &Wanted) -> Result<Result<(), NoPages>> {
        if *wanted == self.wanted {
            return Ok(Ok(()));
        }
        self.release();
        for (size, pages) in wanted {
            if usable(*size) >= *pages {
                continue;
            }
            match self.take(*size, *pages)? {
                Ok(lease) => self.leases.push(lease),
                Err(none) => {
                    self.release();
                    return Ok(Err(none));
                }
            }
        }
        self.wanted.clone_from(wanted);
        Ok(Ok(()))
    }

    /// Returns all pages.
    pub fn release(&mut self) {
        self.wanted.clear();
        self.leases.clear();
    }

    fn take(&self, size: HugePageSize, pages: u64) -> Result<Result<Lease, NoPages>> {
        let missing = || {
            format!(
                "the case needs {pages} pages of {size}, but only {} are usable",
                usable(size)
            )
        };
        let none = |reason, hint: Option<String>| Ok(Err(NoPages { reason, hint }));
        let command = lease::command(size, pages);
        if self.no_reserve {
            return none(missing(), Some(command));
        }
        let asked = Lease::ask(size, pages, &[], self.cancelled)?;
        let (lease, answer) = asked.ok_or_else(|| CompareError::from(Cancelled))?;
        match answer {
            Answer::Complete { .. } => Ok(Ok(lease)),
            Answer::Memory {
                available,
                needed,
                keep,
            } => none(
                format!(
                    "{}: adding pages takes {needed} MiB of memory, but {available} MiB are available and {keep} MiB must stay free",
                    missing()
                ),
                None,
            ),
            Answer::Short { .. } => none(
                format!("{}: memory is too fragmented to add more", missing()),
                Some(
                    "restart the machine, or reserve pages at boot with `hugepages pool persist`"
                        .to_owned(),
                ),
            ),
            Answer::Refused => none(
                format!("{}, and this user cannot change the pool", missing()),
                Some(command),
            ),
        }
    }
}

pub fn usable(size: HugePageSize) -> u64 {
    kernel::usable(&Root::system(), size)
}
