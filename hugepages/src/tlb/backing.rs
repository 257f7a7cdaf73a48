//! The backing of memory, as the kernel reports it.

use std::io;
use std::ops::Range;

use serde::Serialize;

use crate::kernel::Root;
use crate::kernel::processes::numa_maps::{self, MappingNodes};
use crate::kernel::processes::smaps;

/// The backing of memory, from `/proc/self/smaps` and `numa_maps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backing {
    /// `KernelPageSize`
    pub kernel_page_bytes: u64,
    /// `Rss` plus `Private_Hugetlb`, which `Rss` does not include.
    pub resident_bytes: u64,
    /// `AnonHugePages`: of these, on THP.
    pub thp_bytes: u64,
    /// `Private_Hugetlb`: of these, on `HugeTLB` pages.
    pub hugetlb_bytes: u64,
    /// Number of pages on each NUMA node. Empty if the kernel does not report it.
    pub nodes: Vec<(u32, u64)>,
}

impl Backing {
    /// Reads the backing of a range of this process from the kernel.
    pub(super) fn read(range: Range<u64>) -> io::Result<Self> {
        let start = range.start;
        let root = Root::system();
        let smaps = smaps::read(&root, "self")?;
        let mut backing = Self::from_smaps(&smaps, range);
        backing.nodes = nodes(numa_maps::read(&root, "self"), start);
        Ok(backing)
    }

    /// Sums the mappings of a range: an advice may have split it.
    fn from_smaps(smaps: &str, range: Range<u64>) -> Self {
        let mut backing = Self::default();
        for mapping in smaps::mappings(smaps).filter(|mapping| range.contains(&mapping.start)) {
            let hugetlb = mapping.bytes("Private_Hugetlb");
            backing.kernel_page_bytes = mapping.bytes("KernelPageSize");
            backing.resident_bytes += mapping.bytes("Rss") + hugetlb;
            backing.thp_bytes += mapping.bytes("AnonHugePages");
            backing.hugetlb_bytes += hugetlb;
        }
        backing
    }
}

/// The nodes of the mapping that begins at the address.
fn nodes(mappings: Vec<MappingNodes>, start: u64) -> Vec<(u32, u64)> {
    let mut mappings = mappings.into_iter();
    let ours = mappings.find(|mapping| mapping.start == start);
    ours.map_or_else(Vec::new, |mapping| mapping.nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_others_and_other_fields_are_not_counted() {
        let smaps = "\
1000-2000 rw-p 00000000 00:00 0
Rss:                 400 kB
10000-20000 rw-p 00000000 00:00 0
KernelPageSize:     2048 kB
Rss:                   0 kB
Private_Hugetlb:    6144 kB
VmFlags: rd wr mr mw me de ht
20000-30000 rw-p 00000000 00:00 0
Rss:                  80 kB
";
        let backing = Backing::from_smaps(smaps, 0x10000..0x20000);
        assert_eq!(backing.kernel_page_bytes, 2 << 20);
        assert_eq!(backing.hugetlb_bytes, 6 << 20);
        assert_eq!(backing.resident_bytes, 6 << 20);
        let numa_maps = "00001000 default anon=1 N0=9\n00010000 default huge anon=3 N0=2 N1=1 kernelpagesize_kB=2048\n";
        assert_eq!(
            nodes(numa_maps::parse(numa_maps), 0x10000),
            [(0, 2), (1, 1)]
        );
        assert_eq!(nodes(numa_maps::parse(numa_maps), 0x20000), []);
    }
}
