//! The pools of all page sizes, as a whole and on each node.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

use llama_hugepages::ffi;
use serde::Serialize;

use super::{HugePageSize, Root, nodes, sizes};

/// One pool, counted in pages. Source: `/sys/kernel/mm/hugepages/hugepages-*/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pool {
    /// Page size.
    pub size: HugePageSize,
    /// `nr_hugepages`: all pages, surplus included.
    pub total: u64,
    /// `free_hugepages`: not in use, reserved ones included.
    pub free: u64,
    /// `resv_hugepages`: promised to a mapping and not yet touched.
    pub reserved: u64,
    /// `surplus_hugepages`: taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
    /// `nr_overcommit_hugepages`: the limit for surplus pages.
    pub overcommit: u64,
}

impl Pool {
    /// Reads a pool. `None` if the kernel has no pool of this size.
    ///
    /// ```
    /// use hugepages::kernel::{HugePageSize, Pool, Root};
    ///
    /// let size: HugePageSize = "2M".parse()?;
    /// match Pool::read(&Root::system(), size) {
    ///     Some(pool) => println!("{} of {} pages of {size} usable", pool.usable(), pool.total),
    ///     None => println!("this kernel has no pages of {size}"),
    /// }
    /// # Ok::<(), hugepages::kernel::ParseHugePageSizeError>(())
    /// ```
    pub fn read(root: &Root, size: HugePageSize) -> Option<Self> {
        let mut raw = MaybeUninit::<ffi::ggml_hugepages_pool>::zeroed();
        let bytes = usize::try_from(size.bytes()).ok()?;
        // SAFETY: a C string, a number, and room for one pool, all of which outlive the call.
        let found = unsafe {
            ffi::ggml_hugepages_pool_read(root.as_c_str().as_ptr(), bytes, raw.as_mut_ptr())
        };
        // SAFETY: numbers only, zeroed above, and written by the call.
        let raw = unsafe { raw.assume_init() };
        found.then_some(Self {
            size,
            total: raw.total,
            free: raw.free,
            reserved: raw.reserved,
            surplus: raw.surplus,
            overcommit: raw.overcommit,
        })
    }

    /// Usable pages: free and not reserved, plus the pages that overcommit can add.
    pub fn usable(&self) -> u64 {
        let raw = ffi::ggml_hugepages_pool {
            page_size: self.size.bytes() as usize,
            total: self.total,
            free: self.free,
            reserved: self.reserved,
            surplus: self.surplus,
            overcommit: self.overcommit,
        };
        // SAFETY: reads a struct of numbers that outlives the call.
        unsafe { ffi::ggml_hugepages_pool_usable(&raw const raw) }
    }
}

/// Usable pages of a pool, 0 if the kernel has no pool of this size.
pub fn usable(root: &Root, size: HugePageSize) -> u64 {
    Pool::read(root, size).map_or(0, |pool| pool.usable())
}

/// One pool, counted in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolState {
    /// Page size.
    #[serde(serialize_with = "super::sizes::bytes_of_page")]
    pub page_size: HugePageSize,
    /// All pages, surplus included.
    pub total: u64,
    /// Not in use, reserved ones included.
    pub free: u64,
    /// Promised to a mapping and not yet touched.
    pub reserved: u64,
    /// Taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
    /// Limit for surplus pages.
    pub overcommit: u64,
    /// Free pages that are not reserved, plus the pages that overcommit can add.
    pub usable: u64,
    /// Its parts on each node. The kernel counts reservations and overcommit only for the machine.
    pub nodes: Vec<NodePool>,
}

/// The part of a pool on one NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodePool {
    /// Number of the node.
    pub node: u32,
    /// All pages, surplus included.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// Taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
}

/// All pools, smallest pages first. Empty on a kernel without HugeTLB.
pub fn read(root: &Root) -> Vec<PoolState> {
    let nodes = nodes::all(root);
    let pools = sizes::all(root)
        .into_iter()
        .filter_map(|size| Pool::read(root, size));
    pools
        .map(|pool| PoolState {
            page_size: pool.size,
            total: pool.total,
            free: pool.free,
            reserved: pool.reserved,
            surplus: pool.surplus,
            overcommit: pool.overcommit,
            usable: pool.usable(),
            nodes: nodes
                .iter()
                .filter_map(|node| on_node(root, *node, pool.size))
                .collect(),
        })
        .collect()
}

fn on_node(root: &Root, node: u32, size: HugePageSize) -> Option<NodePool> {
    let dir = root.path(folder(size, Some(node)));
    let count = |name: &str| count(&dir, name).ok();
    Some(NodePool {
        node,
        total: count("nr_hugepages")?,
        free: count("free_hugepages")?,
        surplus: count("surplus_hugepages")?,
    })
}

/// The folder of a pool, of the whole machine or of one node.
pub fn folder(size: HugePageSize, node: Option<u32>) -> String {
    let pool = size.sysfs_name();
    match node {
        None => format!("/sys/kernel/mm/hugepages/{pool}"),
        Some(node) => format!("/sys/devices/system/node/node{node}/hugepages/{pool}"),
    }
}

/// One counter of a pool, from a file in its folder.
///
/// # Errors
/// The file is not readable, or contains no number.
pub fn count(dir: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(dir.join(name))?;
    let text = text.trim();
    text.parse()
        .map_err(|_| io::Error::other(format!("`{text}` is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up_kernel(dir: &Path, size: HugePageSize, values: [u64; 5]) -> Root {
        let pool = dir.join("sys/kernel/mm/hugepages").join(size.sysfs_name());
        fs::create_dir_all(&pool).unwrap();
        let names = [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "surplus_hugepages",
            "nr_overcommit_hugepages",
        ];
        for (name, value) in names.iter().zip(values) {
            fs::write(pool.join(name), format!("{value}\n")).unwrap();
        }
        Root::at(dir).unwrap()
    }

    #[test]
    fn a_pool_is_read_from_any_root() {
        let dir = tempfile::tempdir().unwrap();
        let size = HugePageSize::new(1 << 30).unwrap();
        let root = made_up_kernel(dir.path(), size, [7, 6, 2, 1, 3]);
        let pool = Pool::read(&root, size).unwrap();
        assert_eq!(
            (
                pool.total,
                pool.free,
                pool.reserved,
                pool.surplus,
                pool.overcommit
            ),
            (7, 6, 2, 1, 3)
        );
        assert_eq!(pool.usable(), 6 - 2 + 3 - 1);
    }

    #[test]
    fn no_pool_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(Pool::read(&root, HugePageSize::new(2 << 20).unwrap()), None);
        assert_eq!(sizes::of_images(&root), None);
    }

    #[test]
    fn images_lie_on_the_smallest_size_of_at_least_2_mib() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [64 << 10, 32 << 20, 16 << 30, 2 << 20] {
            made_up_kernel(dir.path(), HugePageSize::new(bytes).unwrap(), [0; 5]);
        }
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(sizes::of_images(&root), HugePageSize::new(2 << 20));
    }
}
