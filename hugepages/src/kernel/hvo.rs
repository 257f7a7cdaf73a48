//! HVO, the HugeTLB vmemmap optimization: a huge page keeps one page of `struct page` memory instead of many.

use std::fs;

use serde::Serialize;

use super::{HugePageSize, PoolState, Root, files};

/// The setting: 1 for on, 0 for off. Absent on a kernel without HVO.
pub const SETTING: &str = "/proc/sys/vm/hugetlb_optimize_vmemmap";

/// Size of `struct page` on every 64-bit kernel with HVO.
const STRUCT_PAGE: u64 = 64;

/// Whether added pages free their `struct page` memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HvoState {
    /// Pages added from now on do.
    On,
    /// Pages added from now on do not.
    Off,
    /// The kernel was built without HVO.
    Unsupported,
}

/// State and effect of HVO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hvo {
    /// `vm.hugetlb_optimize_vmemmap`, which applies only to pages added later.
    pub state: HvoState,
    /// Measured: `struct page` memory, from `/proc/vmstat` (Linux 6.10 or newer).
    pub memmap_bytes: Option<u64>,
    /// Computed: `struct page` memory without HVO.
    pub full_bytes: Option<u64>,
    /// The difference: memory that HVO frees now.
    pub given_back_bytes: Option<u64>,
    /// Computed: memory that HVO would free for the whole pool.
    pub possible_bytes: u64,
}

/// Bytes that HVO frees for one page: a `struct page` of 64 bytes for each 4 KiB, less one base page that stays.
///
/// Source: `Documentation/mm/vmemmap_dedup.rst`.
///
/// ```
/// use hugepages::kernel::hvo::saved_bytes;
///
/// assert_eq!(saved_bytes("2M".parse().unwrap()), 28 << 10);
/// assert_eq!(saved_bytes("1G".parse().unwrap()), (16 << 20) - (4 << 10));
/// assert_eq!(saved_bytes("64K".parse().unwrap()), 0);
/// ```
pub fn saved_bytes(size: HugePageSize) -> u64 {
    let base = rustix::param::page_size() as u64;
    (size.bytes() / base * 64).saturating_sub(base)
}

/// Reads the number in [`SETTING`].
pub fn setting(root: &Root) -> Option<u64> {
    files::number(root, SETTING)
}

/// Reads the setting.
pub fn state(root: &Root) -> HvoState {
    match setting(root) {
        None => HvoState::Unsupported,
        Some(0) => HvoState::Off,
        Some(_) => HvoState::On,
    }
}

/// Reads state and effect.
pub fn read(root: &Root, pools: &[PoolState]) -> Hvo {
    let base_page = rustix::param::page_size() as u64;
    let vmstat = files::text(root, "/proc/vmstat").unwrap_or_default();
    let pages = |name| files::counter(&vmstat, name);
    let memmap_bytes = pages("nr_memmap_pages")
        .zip(pages("nr_memmap_boot_pages"))
        .map(|(later, boot)| (later + boot) * base_page);
    let full_bytes = memory_bytes(root).map(|bytes| bytes / base_page * STRUCT_PAGE);
    Hvo {
        state: state(root),
        memmap_bytes,
        full_bytes,
        given_back_bytes: full_bytes
            .zip(memmap_bytes)
            .map(|(full, memmap)| full.saturating_sub(memmap)),
        possible_bytes: pools
            .iter()
            .map(|pool| pool.total * saved_bytes(pool.page_size))
            .sum(),
    }
}

/// Memory that has `struct page`s: whole blocks, holes in them included.
fn memory_bytes(root: &Root) -> Option<u64> {
    let dir = "/sys/devices/system/memory";
    let block = files::text(root, &format!("{dir}/block_size_bytes"))?;
    let block = u64::from_str_radix(block.trim(), 16).ok()?;
    let is_block = |name: &str| {
        name.strip_prefix("memory")
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let entries = fs::read_dir(root.path(dir)).ok()?.flatten();
    let blocks = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_block))
        .count() as u64;
    (blocks > 0).then_some(blocks * block)
}
