//! Pages for the cases: the free ones, and those that a lease adds.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use anyhow::Result;

use crate::cli::lease::Lease;
use llama_hugepages::compare::{Cancelled, CompareError};
use llama_hugepages::pool::{HugePageSize, Pool, Root};

/// Pages of each size.
pub type Wanted = BTreeMap<HugePageSize, u64>;

/// Why a case has no pages, and what the user can do about it.
#[derive(Debug)]
pub struct NoPages {
    pub reason: String,
    pub hint: Option<String>,
}

/// What is held for the case that runs.
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

    /// Sees to it that so many pages can be had, and not more of ours. What was held before and is not wanted goes.
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

    /// Gives everything back.
    pub fn release(&mut self) {
        self.wanted.clear();
        self.leases.clear();
    }

    fn take(&self, size: HugePageSize, pages: u64) -> Result<Result<Lease, NoPages>> {
        let missing = || {
            format!(
                "{pages} pages of {size} are needed, {} can be had",
                usable(size)
            )
        };
        let none = |reason, hint: Option<String>| Ok(Err(NoPages { reason, hint }));
        let command = format!(
            "sudo hugepages pool reserve {pages} --size {} --usable",
            size.short_name()
        );
        if self.no_reserve {
            return none(missing(), Some(command));
        }
        let asked = Lease::ask(size, pages, &[], self.cancelled)?;
        let (lease, answer) = asked.ok_or_else(|| CompareError::from(Cancelled))?;
        let words: Vec<&str> = answer.split_whitespace().collect();
        match words[..] {
            ["ok", _] => Ok(Ok(lease)),
            ["memory", have, want, keep] => none(
                format!(
                    "{}: {want} MiB of memory are needed for them, {have} are available, {keep} have to stay",
                    missing()
                ),
                None,
            ),
            ["short", ..] => none(
                format!("{}: memory is in pieces too small for more", missing()),
                Some("a restart of the machine, or pages reserved at boot".to_owned()),
            ),
            _ => none(
                format!("{}, and the pool may not be changed", missing()),
                Some(command),
            ),
        }
    }
}

/// Pages that nobody uses and nobody was promised.
pub fn usable(size: HugePageSize) -> u64 {
    Pool::read(&Root::system(), size).map_or(0, |pool| pool.usable())
}
