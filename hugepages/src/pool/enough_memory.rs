//! Whether the machine has enough ordinary memory to add pages.

use super::PoolError;
use crate::kernel::{HugePageSize, Root, meminfo};
use crate::size::ByteSize;

/// Checks that the machine keeps enough memory without these pages: 1 GiB or 5 %, whichever is more.
///
/// # Errors
/// [`PoolError::Memory`]
pub fn enough_memory(root: &Root, size: HugePageSize, pages: u64) -> Result<(), PoolError> {
    let meminfo = meminfo::read(root)
        .map_err(|source| PoolError::io("read", &root.path(meminfo::PATH), source))?;
    let bytes = |name| meminfo.bytes(name).unwrap_or(0);
    let available = bytes("MemAvailable");
    let keep = (bytes("MemTotal") / 20).max(1 << 30);
    let need = pages.saturating_mul(size.bytes());
    if available >= need.saturating_add(keep) {
        return Ok(());
    }
    Err(PoolError::Memory {
        added: pages,
        need: ByteSize::new(need),
        available: ByteSize::new(available),
        keep: ByteSize::new(keep),
    })
}
