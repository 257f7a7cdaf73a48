//! Pages on loan: a process that returns its pages when its input closes, even if its owner was killed.
//! Lives here: the owner, and the line in which the process answers. Not here: the process, `hugepages pool reserve --lease`.

use std::env;
use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::PoolError;
use crate::kernel::HugePageSize;
use crate::size::ByteSize;

/// Why no process could keep pages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The kernel does not report the path of this program.
    #[error("cannot find the path of this program")]
    NoPath(#[source] io::Error),
    /// The process did not start.
    #[error("cannot start `hugepages pool reserve --lease`")]
    Start(#[source] io::Error),
}

/// A process that keeps pages until it is dropped.
#[derive(Debug)]
pub struct Lease {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Lease {
    /// Starts `hugepages pool reserve` with these further arguments, to add pages until `pages` of them are usable. Returns `None` if
    /// `cancelled` was set before the answer.
    ///
    /// # Errors
    /// [`LeaseError`]
    pub fn ask(
        size: HugePageSize,
        pages: u64,
        args: &[&str],
        cancelled: &AtomicBool,
    ) -> Result<Option<(Self, Answer)>, LeaseError> {
        let own = env::current_exe().map_err(LeaseError::NoPath)?;
        let mut holder = Command::new(own)
            .args(["pool", "reserve", &pages.to_string(), "--size"])
            .args([&size.short_name(), "--usable", "--try-hard", "--lease"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Its own process group, so that a Ctrl-C at the terminal reaches only the owner.
            .process_group(0)
            .spawn()
            .map_err(LeaseError::Start)?;
        let output = holder.stdout.take();
        let lease = Self {
            input: holder.stdin.take(),
            holder,
        };
        let (sender, answer) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                // An empty answer counts as a refusal.
                let _ = BufReader::new(output).read_line(&mut line);
            }
            sender.send(line)
        });
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(Some((lease, Answer::parse(&line)))),
                Err(RecvTimeoutError::Disconnected) => return Ok(Some((lease, Answer::Refused))),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancelled.load(Ordering::Relaxed) {
                lease.abandon();
                return Ok(None);
            }
        }
    }

    /// Ends the lease without a long wait, because the process may wait for a lock. Once it has the lock, it reads the end of its input and
    /// returns the pages.
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

/// The first line of `hugepages pool reserve --lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// All pages are usable.
    Complete {
        /// Pages that are new.
        added: u64,
    },
    /// The kernel found too few pages.
    Short {
        /// Pages that are new.
        added: u64,
        /// Usable pages.
        usable: u64,
    },
    /// Too little memory for so many pages, in MiB.
    Memory {
        /// Available memory.
        available: u64,
        /// Memory of the added pages.
        needed: u64,
        /// Memory that must stay free.
        keep: u64,
    },
    /// No such pool, or no right to change it.
    Refused,
}

impl Answer {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index)?.parse().ok();
        let answer = match words.first().copied() {
            Some("ok") => number(1).map(|added| Self::Complete { added }),
            Some("short") => match (number(1), number(2)) {
                (Some(added), Some(usable)) => Some(Self::Short { added, usable }),
                _ => None,
            },
            Some("memory") => match (number(1), number(2), number(3)) {
                (Some(available), Some(needed), Some(keep)) => Some(Self::Memory {
                    available,
                    needed,
                    keep,
                }),
                _ => None,
            },
            _ => None,
        };
        answer.unwrap_or(Self::Refused)
    }

    /// The answer if no page was added.
    pub fn refusal(error: &PoolError) -> Self {
        let mib = |bytes: &ByteSize| bytes.bytes().div_ceil(1 << 20);
        match error {
            PoolError::Memory {
                need,
                available,
                keep,
                ..
            } => Self::Memory {
                available: available.bytes() >> 20,
                needed: mib(need),
                keep: mib(keep),
            },
            PoolError::Short { usable, .. } => Self::Short {
                added: 0,
                usable: *usable,
            },
            _ => Self::Refused,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete { added } => write!(f, "ok {added}"),
            Self::Short { added, usable } => write!(f, "short {added} {usable}"),
            Self::Memory {
                available,
                needed,
                keep,
            } => write!(f, "memory {available} {needed} {keep}"),
            Self::Refused => f.write_str("none"),
        }
    }
}

/// The command for an administrator, which makes this many pages usable.
pub fn command(size: HugePageSize, pages: u64) -> String {
    let size = size.short_name();
    format!("sudo hugepages pool reserve {pages} --size {size} --usable")
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_the_help_is_understood_and_all_else_is_a_refusal() {
        for (line, answer) in [
            ("ok 7\n", Answer::Complete { added: 7 }),
            (
                "short 3 5\n",
                Answer::Short {
                    added: 3,
                    usable: 5,
                },
            ),
            (
                "memory 100 200 30\n",
                Answer::Memory {
                    available: 100,
                    needed: 200,
                    keep: 30,
                },
            ),
            ("none\n", Answer::Refused),
            ("short\n", Answer::Refused),
            ("", Answer::Refused),
        ] {
            assert_eq!(Answer::parse(line), answer, "{line:?}");
        }
    }

    #[test]
    fn the_owner_reads_what_the_holder_writes() {
        for answer in [
            Answer::Complete { added: 7 },
            Answer::Short {
                added: 3,
                usable: 5,
            },
            Answer::Memory {
                available: 100,
                needed: 200,
                keep: 30,
            },
            Answer::Refused,
        ] {
            assert_eq!(Answer::parse(&format!("{answer}\n")), answer);
        }
    }
}
