//! `/proc/PID/smaps`: the memory map of a process, with the backing of each mapping.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;

use serde::Serialize;

use crate::kernel::{Fields, HugePageSize, Root, files};

/// Pages of one size that a process mapped and touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// Page size.
    #[serde(serialize_with = "crate::kernel::sizes::bytes_of_page")]
    pub page_size: HugePageSize,
    /// Bytes that only this process maps.
    pub private_bytes: u64,
    /// Bytes that other processes may map too.
    pub shared_bytes: u64,
}

/// One mapping.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// First address.
    pub start: u64,
    fields: &'a str,
}

impl Mapping<'_> {
    /// A field in bytes: `Rss`, `KernelPageSize`. 0 if the kernel does not report it.
    pub fn bytes(&self, field: &str) -> u64 {
        files::kib_field(self.fields, field).unwrap_or(0)
    }
}

/// The text of the file of a process, by its id or `self`.
///
/// # Errors
/// The process has ended, or this user may not read its map.
pub fn read(root: &Root, pid: impl Display) -> io::Result<String> {
    files::read(root, &format!("/proc/{pid}/smaps"))
}

/// `/proc/PID/smaps_rollup`, the sums over all mappings.
///
/// # Errors
/// As [`read`].
pub fn rollup(root: &Root, pid: u32) -> io::Result<Fields> {
    files::read(root, &format!("/proc/{pid}/smaps_rollup")).map(Fields::new)
}

/// The mappings in the text of a file.
pub fn mappings(smaps: &str) -> impl Iterator<Item = Mapping<'_>> {
    let mut rest = smaps;
    std::iter::from_fn(move || {
        let (head, body) = rest.split_once('\n')?;
        let start = start_of(head)?;
        let mut end = 0;
        for line in body.split_inclusive('\n') {
            if start_of(line).is_some() {
                break;
            }
            end += line.len();
        }
        let (fields, next) = body.split_at(end);
        rest = next;
        Some(Mapping { start, fields })
    })
}

/// The first address, if the line begins a mapping. All other lines begin with the name of a field.
fn start_of(line: &str) -> Option<u64> {
    let (start, rest) = line.split_once('-')?;
    let (_, _) = rest.split_once(' ')?;
    u64::from_str_radix(start, 16).ok()
}

/// The huge pages of a process, by page size.
pub fn shares(smaps: &str) -> Vec<Share> {
    let mut sums: BTreeMap<HugePageSize, (u64, u64)> = BTreeMap::new();
    for mapping in mappings(smaps) {
        let Some(size) = HugePageSize::new(mapping.bytes("KernelPageSize")) else {
            continue;
        };
        let sum = sums.entry(size).or_default();
        sum.0 += mapping.bytes("Private_Hugetlb");
        sum.1 += mapping.bytes("Shared_Hugetlb");
    }
    let used = sums
        .into_iter()
        .filter(|(_, (private, shared))| private + shared > 0);
    used.map(|(page_size, (private_bytes, shared_bytes))| Share {
        page_size,
        private_bytes,
        shared_bytes,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
10000-20000 rw-p 00000000 00:00 0    /a-b c
Rss:       8 kB
KernelPageSize:   4 kB
VmFlags: rd wr
200000-600000 rw-s 00000000 00:0f 9  /memfd:x (deleted)
KernelPageSize:   2048 kB
Shared_Hugetlb:   2048 kB
Private_Hugetlb:  2048 kB
";

    #[test]
    fn each_mapping_has_its_own_fields() {
        let found: Vec<_> = mappings(SMAPS)
            .map(|mapping| (mapping.start, mapping.bytes("Rss")))
            .collect();
        assert_eq!(found, [(0x10000, 8 << 10), (0x20_0000, 0)]);
        assert_eq!(mappings("").count(), 0);
    }

    #[test]
    fn pages_are_counted_by_size() {
        let shares = shares(SMAPS);
        assert_eq!(shares.len(), 1);
        assert_eq!(
            (shares[0].private_bytes, shares[0].shared_bytes),
            (2 << 20, 2 << 20)
        );
    }
}
