//! The memory of a process after its load, counted by the kernel.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::processes::numa_maps::{self, MappingNodes};
use crate::kernel::processes::{self, smaps};
use crate::kernel::{Root, machine, meminfo, pools};

/// Memory at one moment, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Footprint {
    /// Resident, huge pages not included. Source: `Rss` in `/proc/PID/smaps_rollup`.
    pub rss: u64,
    /// Proportional size: shared memory is divided among its processes. Source: `Pss` there.
    pub pss: u64,
    /// On huge pages of a pool. Source: `HugetlbPages` in `/proc/PID/status`.
    pub hugetlb: u64,
    /// The process' page tables. Source: `VmPTE` there.
    pub page_tables: u64,
    /// Page cache that is mapped with entries of 2 MiB. Source: `FilePmdMapped` in `smaps_rollup`.
    pub file_pmd_mapped: u64,
    /// Anonymous memory on THP. Source: `AnonHugePages` there.
    pub anon_huge_pages: u64,
    /// Bytes on each NUMA node. Source: `/proc/PID/numa_maps`.
    pub nodes: BTreeMap<String, u64>,
    /// Of the machine: page cache in pieces of 2 MiB. Source: `FileHugePages` in `/proc/meminfo`.
    pub machine_file_huge_pages: u64,
    /// Of the machine: bytes taken from its pools. Source: `nr_hugepages` and `free_hugepages`.
    pub machine_pool: u64,
    /// Load average of the machine. Source: `/proc/loadavg`.
    pub load_average: String,
}

impl Footprint {
    /// Reads the memory of a process. Unreadable values are 0.
    pub fn read(pid: u32) -> Self {
        let root = Root::system();
        let rollup = smaps::rollup(&root, pid).unwrap_or_default();
        let status = processes::status(&root, pid).unwrap_or_default();
        let meminfo = meminfo::read(&root).unwrap_or_default();
        Self {
            rss: rollup.bytes("Rss").unwrap_or(0),
            pss: rollup.bytes("Pss").unwrap_or(0),
            hugetlb: status.bytes("HugetlbPages").unwrap_or(0),
            page_tables: status.bytes("VmPTE").unwrap_or(0),
            file_pmd_mapped: rollup.bytes("FilePmdMapped").unwrap_or(0),
            anon_huge_pages: rollup.bytes("AnonHugePages").unwrap_or(0),
            nodes: by_node(&numa_maps::read(&root, pid)),
            machine_file_huge_pages: meminfo.bytes("FileHugePages").unwrap_or(0),
            machine_pool: pool_bytes_taken(&root),
            load_average: machine::load_average(&root),
        }
    }
}

/// Bytes taken from all pools.
pub fn pool_bytes_taken(root: &Root) -> u64 {
    let pools = pools::read(root).into_iter();
    pools
        .map(|pool| pool.total.saturating_sub(pool.free) * pool.page_size.bytes())
        .sum()
}

/// Bytes on each node, as `N0`, summed over the mappings.
fn by_node(mappings: &[MappingNodes]) -> BTreeMap<String, u64> {
    let mut nodes = BTreeMap::new();
    for mapping in mappings {
        let Some(page_bytes) = mapping.page_bytes else {
            continue;
        };
        for (node, pages) in &mapping.nodes {
            *nodes.entry(format!("N{node}")).or_default() += pages * page_bytes;
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_each_size_are_bytes_of_their_node() {
        let maps = "7f00 default file=/memfd:x huge anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=2048\n\
            7f10 default anon=5 dirty=5 N0=5 kernelpagesize_kB=4\n7f20 default\n";
        let nodes = by_node(&numa_maps::parse(maps));
        assert_eq!(nodes["N0"], (2 * 2048 + 5 * 4) << 10);
        assert_eq!(nodes["N1"], 2048 << 10);
        assert_eq!(nodes.len(), 2);
    }

    #[test]
    fn this_process_has_memory_and_page_tables() {
        let own = Footprint::read(std::process::id());
        assert!(
            own.rss >= own.pss && own.pss > 0 && own.page_tables > 0,
            "{own:?}"
        );
    }
}
