//! The counters of one pool, of the whole machine or of one node.
//! Lives here: the numbers before and after a change, and writes. Not here: the rules for changes.

use std::fs;
use std::path::PathBuf;

use super::PoolError;
use crate::kernel::{HugePageSize, Root, pools};

/// A pool that can be changed: all pages of a size, or those of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Page size.
    pub size: HugePageSize,
    /// `None` is the whole machine.
    pub node: Option<u32>,
    dir: PathBuf,
}

/// The numbers of a [`Counter`], in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// `nr_hugepages`, surplus included.
    pub total: u64,
    /// `free_hugepages`, reserved ones included.
    pub free: u64,
    /// `resv_hugepages`. 0 for a node, because the kernel counts reservations only for the machine.
    pub reserved: u64,
    /// `surplus_hugepages`
    pub surplus: u64,
}

impl Counts {
    /// The value that a write to `nr_hugepages` sets. A read also counts surplus pages, which the kernel removes by itself.
    pub fn persistent(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }

    /// Free pages that are not reserved.
    pub fn idle(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

impl Counter {
    /// Finds the pool.
    ///
    /// # Errors
    /// [`PoolError::NoPool`], [`PoolError::NoNode`]
    pub fn new(root: &Root, size: HugePageSize, node: Option<u32>) -> Result<Self, PoolError> {
        let all = root.path(pools::folder(size, None));
        if !all.is_dir() {
            return Err(PoolError::NoPool { size });
        }
        let dir = match node {
            None => all,
            Some(node) => {
                let dir = root.path(pools::folder(size, Some(node)));
                if !dir.is_dir() {
                    return Err(PoolError::NoNode { node });
                }
                dir
            }
        };
        Ok(Self { size, node, dir })
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// [`PoolError::Io`]
    pub fn read(&self) -> Result<Counts, PoolError> {
        Ok(Counts {
            total: self.value("nr_hugepages")?,
            free: self.value("free_hugepages")?,
            reserved: match self.node {
                None => self.value("resv_hugepages")?,
                Some(_) => 0,
            },
            surplus: self.value("surplus_hugepages")?,
        })
    }

    fn value(&self, name: &str) -> Result<u64, PoolError> {
        let failed = |source| PoolError::io("read", &self.dir.join(name), source);
        pools::count(&self.dir, name).map_err(failed)
    }

    /// File of the total.
    pub fn path(&self) -> PathBuf {
        self.dir.join("nr_hugepages")
    }

    /// Requests a total. The caller must read it back, because the kernel may allocate fewer pages without an error.
    pub(super) fn set(&self, total: u64) -> Result<(), PoolError> {
        write(&self.path(), &total.to_string())
    }

    /// Splits idle pages into pages of the next smaller size.
    pub(super) fn demote(&self, pages: u64) -> Result<(), PoolError> {
        write(&self.dir.join("demote"), &pages.to_string())
    }

    /// Checks the right to change the pool, without a write.
    ///
    /// # Errors
    /// [`PoolError::Io`]
    pub fn writable(&self) -> Result<(), PoolError> {
        let path = self.path();
        let opened = fs::OpenOptions::new().write(true).open(&path);
        opened.map_err(|source| PoolError::io("change", &path, source))?;
        Ok(())
    }

    /// `2 MiB`, or `2 MiB on node 1`
    pub fn name(&self) -> String {
        match self.node {
            None => self.size.to_string(),
            Some(node) => format!("{} on node {node}", self.size),
        }
    }
}

/// Writes to a file of the kernel, and never creates it.
pub(super) fn write(path: &std::path::Path, text: &str) -> Result<(), PoolError> {
    let opened = fs::OpenOptions::new().write(true).truncate(true).open(path);
    opened
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| PoolError::io("change", path, source))
}
