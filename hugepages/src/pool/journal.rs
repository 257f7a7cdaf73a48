//! The log of all changes, written before and after each change: one JSON object a line.
//!
//! ```text
//! intent 1: pages of 2 MiB, 0 -> 12 wanted      written and synced before the change
//! outcome 1: +12                                after it
//! intent 2: of 1, 12 -> 4 wanted
//!                                               killed here: the next command reads the counters
//! ```
//! The next command completes an intent without outcome, under the lock: the difference between the current total and the total
//! before is ours, as far as the intent covers it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PoolError;
use super::state_directory::{State, open};
use crate::kernel::processes::stat::Stat;
use crate::kernel::{HugePageSize, Root, running};

/// A process that keeps pages until it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id. The start time is needed too, because the kernel reuses ids.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub started: u64,
}

impl Holder {
    /// This process.
    pub fn own() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: started(pid).unwrap_or(0),
        }
    }

    /// Whether the process still runs.
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn started(pid: u32) -> Option<u64> {
    Some(Stat::read(&Root::system(), pid)?.started)
}

/// An intended change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(super) enum Change {
    Pages {
        bytes: u64,
        node: Option<u32>,
        /// Persistent pages before, and the requested difference.
        before: u64,
        delta: i64,
        /// Pages before the change that this tool had not added.
        others: u64,
        /// The entry that this change undoes.
        of: Option<u64>,
        holder: Option<Holder>,
    },
    Hvo {
        before: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Boot(String),
    Intent {
        id: u64,
        what: Change,
    },
    /// `got` pages were added; negative for returned pages.
    Outcome {
        id: u64,
        got: i64,
    },
    Undone {
        id: u64,
    },
}

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: u64,
    pub what: Change,
    /// Outcome; `None` if the command was killed.
    pub got: Option<i64>,
    pub undone: bool,
}

impl Entry {
    /// Whether a live process holds this reservation.
    pub fn is_held(&self) -> bool {
        let Change::Pages {
            of: None, holder, ..
        } = self.what
        else {
            return false;
        };
        holder.is_some_and(Holder::is_alive)
    }
}

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    pub entries: Vec<Entry>,
    next: u64,
}

impl Journal {
    /// Opens the journal. The caller must hold the lock.
    pub fn open(root: &Root, state: &State) -> Result<Self, PoolError> {
        let path = state.journal();
        let failed = |source| PoolError::io("open", &path, source);
        let mut file = open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // A command that was killed during a write leaves an incomplete last line, and changed no pool after it.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(failed)?;
        let mut journal = Self {
            file,
            path: path.clone(),
            entries: Vec::new(),
            next: 1,
        };
        let boot = running::boot_id(root).unwrap_or_else(|| "none".to_owned());
        for (number, line) in text[..whole].lines().enumerate() {
            let damaged = PoolError::Journal {
                path: path.clone(),
                line: number + 1,
            };
            match serde_json::from_str(line) {
                // A reboot undoes all earlier changes.
                Ok(Line::Boot(id)) if id != boot => break,
                Ok(line) => journal.replay(line).ok_or(damaged)?,
                Err(_) => return Err(damaged),
            }
        }
        // An undo belongs to its entry and does not count by itself.
        let is_over =
            |entry: &Entry| entry.undone || matches!(entry.what, Change::Pages { of: Some(_), .. });
        if journal.entries.iter().all(is_over) {
            journal.clear()?;
            journal.append(&Line::Boot(boot))?;
        }
        Ok(journal)
    }

    fn replay(&mut self, line: Line) -> Option<()> {
        match line {
            Line::Boot(_) => {}
            Line::Intent { id, what } => {
                self.next = self.next.max(id + 1);
                self.entries.push(Entry {
                    id,
                    what,
                    got: None,
                    undone: false,
                });
            }
            Line::Outcome { id, got } => self.entry(id)?.got = Some(got),
            Line::Undone { id } => self.entry(id)?.undone = true,
        }
        Some(())
    }

    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }

    /// Logs an intent before the change. After an error the change must not happen.
    pub fn intend(&mut self, what: Change) -> Result<u64, PoolError> {
        let id = self.next;
        let line = Line::Intent { id, what };
        self.append(&line)?;
        self.replay(line);
        Ok(id)
    }

    /// Logs the outcome after the change.
    pub fn happened(&mut self, id: u64, got: i64) -> Result<(), PoolError> {
        self.append(&Line::Outcome { id, got })?;
        self.replay(Line::Outcome { id, got });
        Ok(())
    }

    /// Logs that all pages of an entry were returned.
    pub fn undone(&mut self, id: u64) -> Result<(), PoolError> {
        self.append(&Line::Undone { id })?;
        self.replay(Line::Undone { id });
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), PoolError> {
        let start = self.file.stream_position();
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        let written = self.file.write_all(text.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|source| {
                // An incomplete line would corrupt the next one.
                if let Ok(start) = start {
                    let _ = self.file.set_len(start);
                    let _ = self.file.seek(SeekFrom::Start(start));
                }
                PoolError::io("write", &self.path, source)
            })
    }

    fn clear(&mut self) -> Result<(), PoolError> {
        self.entries.clear();
        self.next = 1;
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|source: io::Error| PoolError::io("empty", &self.path, source))
    }

    /// Pages of an entry that remain in the pool: its outcome less its undos.
    pub fn outstanding(&self, id: u64) -> i64 {
        let of = |entry: &&Entry| match entry.what {
            Change::Pages { of, .. } => entry.id == id || of == Some(id),
            Change::Hvo { .. } => false,
        };
        self.entries
            .iter()
            .filter(of)
            .filter_map(|entry| entry.got)
            .sum()
    }

    /// Entries that are no undos, oldest first, with their remaining pages.
    pub fn left(&self, size: HugePageSize, node: Option<u32>) -> Vec<(Entry, i64)> {
        let of_pool = |entry: &&Entry| match entry.what {
            Change::Pages {
                bytes,
                node: of_node,
                of,
                ..
            } => bytes == size.bytes() && of_node == node && of.is_none() && !entry.undone,
            Change::Hvo { .. } => false,
        };
        let entries = self.entries.iter().filter(of_pool);
        entries
            .map(|entry| (entry.clone(), self.outstanding(entry.id)))
            .collect()
    }

    /// Remaining pages of a size that this tool added, on one node or on the whole machine.
    pub fn ours(&self, size: HugePageSize, node: Option<u32>) -> i64 {
        let top = |entry: &&Entry| match entry.what {
            Change::Pages {
                bytes,
                node: of_node,
                of,
                ..
            } => {
                let here = node.is_none() || of_node == node;
                bytes == size.bytes() && here && of.is_none() && !entry.undone
            }
            Change::Hvo { .. } => false,
        };
        let entries = self.entries.iter().filter(top);
        entries.map(|entry| self.outstanding(entry.id)).sum()
    }
}
