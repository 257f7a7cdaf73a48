//! The backing of memory, as the kernel reports it.

use std::fs;
use std::io;
use std::ops::Range;

use serde::Serialize;

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
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let mut backing = Self::from_smaps(&smaps, range);
        // A kernel without NUMA has no such file.
        let numa_maps = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
        backing.nodes = nodes(&numa_maps, start);
        Ok(backing)
    }

    /// Sums the mappings of a range: an advice may have split it.
    pub(super) fn from_smaps(smaps: &str, range: Range<u64>) -> Self {
        let mut backing = Self::default();
        let mut ours = false;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            let Some(field) = first.strip_suffix(':') else {
                let start = first
                    .split_once('-')
                    .and_then(|(start, _)| u64::from_str_radix(start, 16).ok());
                ours = start.is_some_and(|start| range.contains(&start));
                continue;
            };
            let kib: Option<u64> = words.next().and_then(|number| number.parse().ok());
            let (true, Some(kib)) = (ours, kib) else {
                continue;
            };
            let bytes = kib * 1024;
            match field {
                "KernelPageSize" => backing.kernel_page_bytes = bytes,
                "Rss" => backing.resident_bytes += bytes,
                "AnonHugePages" => backing.thp_bytes += bytes,
                "Private_Hugetlb" => {
                    backing.hugetlb_bytes += bytes;
                    backing.resident_bytes += bytes;
                }
                _ => {}
            }
        }
        backing
    }
}

/// `N0=512 N1=3` of the line that begins with the address.
fn nodes(numa_maps: &str, start: u64) -> Vec<(u32, u64)> {
    let address = format!("{start:08x}");
    let line = numa_maps
        .lines()
        .find(|line| line.split(' ').next() == Some(&address));
    let fields = line.unwrap_or_default().split(' ');
    fields
        .filter_map(|field| {
            let (node, pages) = field.strip_prefix('N')?.split_once('=')?;
            Some((node.parse().ok()?, pages.parse().ok()?))
        })
        .collect()
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
        assert_eq!(nodes(numa_maps, 0x10000), [(0, 2), (1, 1)]);
        assert_eq!(nodes(numa_maps, 0x20000), []);
    }
}
