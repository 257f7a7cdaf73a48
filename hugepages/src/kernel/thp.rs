//! Transparent huge pages (THP): settings and amount.

use serde::Serialize;

use super::{Root, files};

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
        let text = files::text(root, &format!("/sys/kernel/mm/transparent_hugepage/{name}"))?;
        files::chosen(&text).map(str::to_owned)
    };
    let meminfo = files::text(root, "/proc/meminfo").unwrap_or_default();
    Thp {
        enabled: setting("enabled"),
        defrag: setting("defrag"),
        shmem_enabled: setting("shmem_enabled"),
        anon_bytes: files::kib_field(&meminfo, "AnonHugePages"),
        file_bytes: files::kib_field(&meminfo, "FileHugePages"),
        file_mapped_bytes: files::kib_field(&meminfo, "FilePmdMapped"),
    }
}
