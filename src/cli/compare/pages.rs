//! Pages for the cases: what is free, and what `hugepages pool reserve --lease` adds to it.
//!
//! The lease is a process that gives its pages back when the other end of its input closes, so they come back also when this
//! process is killed.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

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
        let (lease, answer) = Lease::ask(size, pages, self.cancelled)?;
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

/// A process that keeps pages until it is dropped.
struct Lease {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Lease {
    /// Asks for pages. Returns its answer, too.
    fn ask(size: HugePageSize, pages: u64, cancelled: &AtomicBool) -> Result<(Self, String)> {
        let own = env::current_exe().context("cannot tell where this program lies")?;
        let mut holder = Command::new(own)
            .args(["pool", "reserve", &pages.to_string(), "--size"])
            .args([&size.short_name(), "--usable", "--try-hard", "--lease"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for this process, which ends it.
            .process_group(0)
            .spawn()
            .context("cannot start `hugepages pool reserve --lease`")?;
        let output = holder.stdout.take();
        let lease = Self {
            input: holder.stdin.take(),
            holder,
        };
        let (sender, answer) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                // One that ends without a word says nothing.
                let _ = BufReader::new(output).read_line(&mut line);
            }
            sender.send(line)
        });
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok((lease, line)),
                Err(RecvTimeoutError::Disconnected) => return Ok((lease, String::new())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancelled.load(Ordering::Relaxed) {
                lease.abandon();
                return Err(CompareError::from(Cancelled).into());
            }
        }
    }

    /// It may wait for a lock that somebody else holds. When it gets that, it finds its input at its end, and gives back at once.
    fn abandon(mut self) {
        drop(self.input.take());
        for _ in 0..100 {
            if matches!(self.holder.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        std::mem::forget(self);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.wait();
    }
}
