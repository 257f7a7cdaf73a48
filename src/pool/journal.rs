//! What was changed, written down before and after: one JSON object a line.
//!
//! ```text
//! intent 1: pages of 2 MiB, 0 -> 12 wanted      written and synced before the change
//! outcome 1: +12                                after it
//! intent 2: of 1, 12 -> 4 wanted
//!                                               killed here: look at what is there
//! ```
//! An intent without outcome is settled by the next command, under the lock: the pool's number lies between what it was and
//! what was asked for, and the difference is ours.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::state::{State, open};
use super::{ChangeError, HugePageSize, Root};

/// Who keeps pages only as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its number, and when it was started: numbers are used again.
    pub pid: u32,
    /// In clock ticks since boot.
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

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`. The second is a name in parentheses that may hold anything.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// What is about to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(super) enum What {
    Pages {
        bytes: u64,
        node: Option<u32>,
        /// Persistent pages before, and how many more (or fewer) are asked for.
        before: u64,
        delta: i64,
        /// Of those before, pages that this tool had not added.
        others: u64,
        /// The entry that this one takes back from.
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
        what: What,
    },
    /// `got` pages were added; it is negative where they were given back.
    Outcome {
        id: u64,
        got: i64,
    },
    Undone {
        id: u64,
    },
}

/// An entry that is not undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: u64,
    pub what: What,
    /// `None` without an outcome.
    pub got: Option<i64>,
    pub undone: bool,
}

impl Entry {
    /// Whether it is a reservation that a live process keeps.
    pub fn is_held(&self) -> bool {
        let What::Pages {
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
    /// Under the lock only.
    pub fn open(root: &Root, state: &State) -> Result<Self, ChangeError> {
        let path = state.journal();
        let failed = |source| ChangeError::io("open", &path, source);
        let mut file = open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // Who was killed while writing leaves part of a line, and has changed nothing behind it.
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
        let boot = fs::read_to_string(root.path("/proc/sys/kernel/random/boot_id"));
        let boot = boot.map_or_else(|_| "none".to_owned(), |id| id.trim().to_owned());
        for (number, line) in text[..whole].lines().enumerate() {
            let damaged = ChangeError::Journal {
                path: path.clone(),
                line: number + 1,
            };
            match serde_json::from_str(line) {
                // A boot undid everything that was changed before it.
                Ok(Line::Boot(id)) if id != boot => break,
                Ok(line) => journal.replay(line).ok_or(damaged)?,
                Err(_) => return Err(damaged),
            }
        }
        // What was taken back from an entry has no life of its own.
        let is_over =
            |entry: &Entry| entry.undone || matches!(entry.what, What::Pages { of: Some(_), .. });
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

    /// Before the change. An error means that it must not be made.
    pub fn intend(&mut self, what: What) -> Result<u64, ChangeError> {
        let id = self.next;
        let line = Line::Intent { id, what };
        self.append(&line)?;
        self.replay(line);
        Ok(id)
    }

    /// After it.
    pub fn happened(&mut self, id: u64, got: i64) -> Result<(), ChangeError> {
        self.append(&Line::Outcome { id, got })?;
        self.replay(Line::Outcome { id, got });
        Ok(())
    }

    /// Nothing of it is left.
    pub fn undone(&mut self, id: u64) -> Result<(), ChangeError> {
        self.append(&Line::Undone { id })?;
        self.replay(Line::Undone { id });
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), ChangeError> {
        let start = self.file.stream_position();
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        let written = self.file.write_all(text.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|source| {
                // Half a line would be in the way of the next one.
                if let Ok(start) = start {
                    let _ = self.file.set_len(start);
                    let _ = self.file.seek(SeekFrom::Start(start));
                }
                ChangeError::io("write", &self.path, source)
            })
    }

    fn clear(&mut self) -> Result<(), ChangeError> {
        self.entries.clear();
        self.next = 1;
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|source: io::Error| ChangeError::io("empty", &self.path, source))
    }

    /// Pages of an entry that are still there, counted from it and from what took back from it.
    pub fn outstanding(&self, id: u64) -> i64 {
        let of = |entry: &&Entry| match entry.what {
            What::Pages { of, .. } => entry.id == id || of == Some(id),
            What::Hvo { .. } => false,
        };
        self.entries
            .iter()
            .filter(of)
            .filter_map(|entry| entry.got)
            .sum()
    }

    /// Entries that added or took pages by themselves, oldest first, with what is left of each.
    pub fn left(&self, size: HugePageSize, node: Option<u32>) -> Vec<(Entry, i64)> {
        let of_pool = |entry: &&Entry| match entry.what {
            What::Pages {
                bytes,
                node: of_node,
                of,
                ..
            } => bytes == size.bytes() && of_node == node && of.is_none() && !entry.undone,
            What::Hvo { .. } => false,
        };
        let entries = self.entries.iter().filter(of_pool);
        entries
            .map(|entry| (entry.clone(), self.outstanding(entry.id)))
            .collect()
    }

    /// Pages of a size that this tool added and that are still there, on one node or, for the machine, on all.
    pub fn ours(&self, size: HugePageSize, node: Option<u32>) -> i64 {
        let top = |entry: &&Entry| match entry.what {
            What::Pages {
                bytes,
                node: of_node,
                of,
                ..
            } => {
                let here = node.is_none() || of_node == node;
                bytes == size.bytes() && here && of.is_none() && !entry.undone
            }
            What::Hvo { .. } => false,
        };
        let entries = self.entries.iter().filter(top);
        entries.map(|entry| self.outstanding(entry.id)).sum()
    }
}
