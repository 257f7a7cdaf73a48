//! Transparent huge pages (THP): settings and amount.

use serde::Serialize;

use super::{Root, files, meminfo};

const DIR: &str = "/sys/kernel/mm/transparent_hugepage";

/// Settings and amount of THP. Fields that the kernel lacks are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Thp {
    /// `always`, `madvise` or `never`.
    pub enabled: Option<String>,
    /// `defrag`: the effort of a page fault to get a THP.
    pub defrag: Option<String>,
    /// `enabled` for shared memory.
    pub shmem_enabled: Option<String>,
    /// Anonymous memory on THP.
    pub anon_bytes: Option<u64>,
    /// Page cache in pieces of this size: `FileHugePages`.
    pub file_bytes: Option<u64>,
    /// Page cache that is mapped with huge entries: `FilePmdMapped`.
    pub file_mapped_bytes: Option<u64>,
}

/// Reads settings and amount.
pub fn read(root: &Root) -> Thp {
    let setting = |name: &str| {
        let text = files::text(root, &format!("{DIR}/{name}"))?;
        files::chosen(&text).map(str::to_owned)
    };
    let meminfo = meminfo::read(root).unwrap_or_default();
    Thp {
        enabled: setting("enabled"),
        defrag: setting("defrag"),
        shmem_enabled: setting("shmem_enabled"),
        anon_bytes: meminfo.bytes("AnonHugePages"),
        file_bytes: meminfo.bytes("FileHugePages"),
        file_mapped_bytes: meminfo.bytes("FilePmdMapped"),
    }
}

/// All modes, with the chosen one in brackets: `always [madvise] never`.
pub fn modes(root: &Root) -> Option<String> {
    let modes = files::text(root, &format!("{DIR}/enabled"))?;
    Some(modes.trim().to_owned())
}

/// Bytes of one THP.
pub fn page_bytes(root: &Root) -> Option<usize> {
    files::number(root, &format!("{DIR}/hpage_pmd_size"))
}
