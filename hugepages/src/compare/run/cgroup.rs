//! A cgroup with a memory limit, of version 2 or 1.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::CompareError;
use super::guardian::Guardian;
use crate::kernel::Root;
use crate::kernel::cgroup_limits::{self, memory_hierarchy};

/// A temporary cgroup. It is removed when the value is dropped, or by the guardian if this process is killed.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    is_v2: bool,
    _guardian: Guardian,
}

impl Cgroup {
    /// Creates a cgroup with a limit in bytes, including page cache.
    pub fn with_memory(bytes: u64) -> Result<Self, CompareError> {
        let hierarchy = memory_hierarchy(&Root::system());
        let (parent, is_v2) =
            hierarchy.ok_or_else(|| no(io::Error::other("no memory controller is mounted")))?;
        let mut guardian = Guardian::start().map_err(no)?;
        if is_v2 {
            enable(&parent, &mut guardian)?;
        }
        let dir = parent.join(format!("llama-hugepages-compare-{}", std::process::id()));
        guardian.tell("cgroup", &dir).map_err(no)?;
        fs::create_dir(&dir).map_err(no)?;
        let cgroup = Self {
            dir,
            is_v2,
            _guardian: guardian,
        };
        let limit = if is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        fs::write(cgroup.dir.join(limit), bytes.to_string()).map_err(no)?;
        if is_v2 {
            // Without swap, because swapped memory would leave more room for page cache.
            let _ = fs::write(cgroup.dir.join("memory.swap.max"), "0");
        } else {
            let _ = fs::write(cgroup.dir.join("memory.swappiness"), "0");
        }
        Ok(cgroup)
    }

    /// File that makes a process a member when it writes `0`.
    pub fn members(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.dir.join("cgroup.procs"))
    }

    /// `2` or `1`
    pub fn version(&self) -> u8 {
        if self.is_v2 { 2 } else { 1 }
    }
}

fn no(source: io::Error) -> CompareError {
    CompareError::NoCgroup { source }
}

/// Enables the controller for the children of the root, if needed.
fn enable(top: &Path, guardian: &mut Guardian) -> Result<(), CompareError> {
    let control = top.join("cgroup.subtree_control");
    let passed_on = fs::read_to_string(&control).map_err(no)?;
    if passed_on.split_whitespace().any(|word| word == "memory") {
        return Ok(());
    }
    guardian.tell("control", &control).map_err(no)?;
    fs::write(&control, "+memory").map_err(no)
}

/// Whether `memory.max` counts huge pages. Source: the mount option `memory_hugetlb_accounting` of cgroup v2.
pub fn accounts_huge_pages() -> bool {
    cgroup_limits::memory_counts_huge_pages(&Root::system())
}
