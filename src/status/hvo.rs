//! HVO, the HugeTLB vmemmap optimization: a huge page needs one page of `struct page` instead of many.

use std::fs;

use serde::Serialize;

use super::PoolState;
use crate::kernel_files;
use crate::pool::Root;

/// On every 64-bit kernel that can have it.
const STRUCT_PAGE: u64 = 64;

/// Whether pages that join the pool give back their `struct page` memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HvoState {
    /// Pages that are added from now on do.
    On,
    /// Pages that are added from now on do not.
    Off,
    /// The kernel was built without it.
    Unsupported,
}

/// What HVO does here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hvo {
    /// `vm.hugetlb_optimize_vmemmap`. It says nothing of pages that are in the pool already.
    pub state: HvoState,
    /// Measured: memory under `struct page`, from `/proc/vmstat` (kernel 6.10 or newer).
    pub memmap_bytes: Option<u64>,
    /// Computed: what that would be if every page of memory had its own.
    pub full_bytes: Option<u64>,
    /// The difference: what the pool gives back now.
    pub given_back_bytes: Option<u64>,
    /// Computed: what the pool would give back if all of it was allocated with HVO on.
    pub possible_bytes: u64,
}

/// Whether it is on.
pub fn state(root: &Root) -> HvoState {
    match kernel_files::number::<u32>(root, "/proc/sys/vm/hugetlb_optimize_vmemmap") {
        None => HvoState::Unsupported,
        Some(0) => HvoState::Off,
        Some(_) => HvoState::On,
    }
}

/// Reads it.
pub fn read(root: &Root, pools: &[PoolState]) -> Hvo {
    let base_page = rustix::param::page_size() as u64;
    let vmstat = kernel_files::text(root, "/proc/vmstat").unwrap_or_default();
    let pages = |name| kernel_files::counter(&vmstat, name);
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
            .map(|pool| pool.total * pool.page_size.hvo_bytes())
            .sum(),
    }
}

/// Memory that has `struct page`s: whole blocks, holes in them included.
fn memory_bytes(root: &Root) -> Option<u64> {
    let dir = "/sys/devices/system/memory";
    let block = kernel_files::text(root, &format!("{dir}/block_size_bytes"))?;
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
