//! The memory of a process after its load, counted by the kernel.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::Root;
use crate::kernel::files;
use crate::kernel::pools;

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
        let text = |path: &str| files::text(&root, path).unwrap_or_default();
        let rollup = text(&format!("/proc/{pid}/smaps_rollup"));
        let status = text(&format!("/proc/{pid}/status"));
        let field = |text: &str, name| files::kib_field(text, name).unwrap_or(0);
        let load = text("/proc/loadavg");
        let load: Vec<_> = load.split(' ').take(3).collect();
        Self {
            rss: field(&rollup, "Rss"),
            pss: field(&rollup, "Pss"),
            hugetlb: field(&status, "HugetlbPages"),
            page_tables: field(&status, "VmPTE"),
            file_pmd_mapped: field(&rollup, "FilePmdMapped"),
            anon_huge_pages: field(&rollup, "AnonHugePages"),
            nodes: by_node(&text(&format!("/proc/{pid}/numa_maps"))),
            machine_file_huge_pages: field(&text("/proc/meminfo"), "FileHugePages"),
            machine_pool: pool_bytes_taken(&root),
            load_average: load.join(" "),
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

/// `… N0=12 N1=3 kernelpagesize_kB=4`, summed over the mappings.
fn by_node(numa_maps: &str) -> BTreeMap<String, u64> {
    let mut nodes = BTreeMap::new();
    for line in numa_maps.lines() {
        let words: Vec<_> = line
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .collect();
        let number = |text: &str| text.parse::<u64>().ok();
        let page = words.iter().find(|(key, _)| *key == "kernelpagesize_kB");
        let Some(page) = page.and_then(|(_, kib)| number(kib)) else {
            continue;
        };
        for (key, pages) in &words {
            let is_node = key.strip_prefix('N').is_some_and(|n| number(n).is_some());
            if let Some(pages) = number(pages).filter(|_| is_node) {
                *nodes.entry((*key).to_owned()).or_default() += pages * page * 1024;
            }
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
        let nodes = by_node(maps);
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
