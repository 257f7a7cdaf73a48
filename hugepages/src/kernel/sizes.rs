//! The page sizes of this kernel.

use std::fs;

use llama_hugepages::{HugePageSize, ffi};
use serde::Serializer;

use super::{Root, meminfo};

/// The page size for model files: the smallest pool of at least 2 MiB. `None` if no such pool exists.
pub fn of_images(root: &Root) -> Option<HugePageSize> {
    // SAFETY: reads a C string that outlives the call.
    let bytes = unsafe { ffi::ggml_hugepages_page_size(root.as_c_str().as_ptr()) };
    HugePageSize::new(bytes as u64)
}

/// All sizes of this kernel, smallest first.
pub fn all(root: &Root) -> Vec<HugePageSize> {
    let of_name = |name: &str| name.strip_prefix("hugepages-")?.parse().ok();
    let entries = fs::read_dir(root.path("/sys/kernel/mm/hugepages"));
    let names = entries.into_iter().flatten().flatten();
    let mut sizes: Vec<_> = names
        .filter_map(|entry| of_name(entry.file_name().to_str()?))
        .collect();
    sizes.sort();
    sizes
}

/// The page size that `vm.nr_hugepages` counts. Source: `Hugepagesize:` in `/proc/meminfo`.
pub fn default_of(root: &Root) -> Option<HugePageSize> {
    HugePageSize::new(meminfo::read(root).ok()?.bytes("Hugepagesize")?)
}

/// In JSON a page size is a number of bytes.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn bytes_of_page<S: Serializer>(
    size: &HugePageSize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.bytes())
}
