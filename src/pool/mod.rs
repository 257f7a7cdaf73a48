//! The machine's huge page pools: page sizes, counters and changes.
//!
//! The engine in ggml reads the pools, and this module adds types. [`Changer`] changes the pools, with a journal that can undo
//! every change.

mod amount;
mod change;
mod change_error;
mod counter;
mod journal;
pub mod persist;
mod root;
mod size;
mod state;
mod users;

pub use amount::{Amount, ParseAmountError};
pub use change::{Changer, Reserved, Undone, Wish, enough_memory};
pub use change_error::ChangeError;
pub use counter::{Counter, Counts};
pub use journal::Holder;
pub use root::Root;
pub use size::{HugePageSize, ParseHugePageSizeError};
pub use state::{Lock, State};
pub use users::User;

use std::mem::MaybeUninit;

use crate::ffi;

/// One pool, counted in pages. Source: `/sys/kernel/mm/hugepages/hugepages-*/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pool {
    /// Page size.
    pub size: HugePageSize,
    /// `nr_hugepages`: all pages, surplus included.
    pub total: u64,
    /// `free_hugepages`: not in use, reserved ones included.
    pub free: u64,
    /// `resv_hugepages`: promised to a mapping and not yet touched.
    pub reserved: u64,
    /// `surplus_hugepages`: taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
    /// `nr_overcommit_hugepages`: the limit for surplus pages.
    pub overcommit: u64,
}

impl Pool {
    /// Reads a pool. `None` if the kernel has no pool of this size.
    ///
    /// ```
    /// use llama_hugepages::pool::{HugePageSize, Pool, Root};
    ///
    /// let size: HugePageSize = "2M".parse()?;
    /// match Pool::read(&Root::system(), size) {
    ///     Some(pool) => println!("{} of {} pages of {size} usable", pool.usable(), pool.total),
    ///     None => println!("this kernel has no pages of {size}"),
    /// }
    /// # Ok::<(), llama_hugepages::pool::ParseHugePageSizeError>(())
    /// ```
    pub fn read(root: &Root, size: HugePageSize) -> Option<Self> {
        let mut raw = MaybeUninit::<ffi::ggml_hugepages_pool>::zeroed();
        let bytes = usize::try_from(size.bytes()).ok()?;
        // SAFETY: a C string, a number, and room for one pool, all of which outlive the call.
        let found = unsafe {
            ffi::ggml_hugepages_pool_read(root.as_c_str().as_ptr(), bytes, raw.as_mut_ptr())
        };
        // SAFETY: numbers only, zeroed above, and written by the call.
        let raw = unsafe { raw.assume_init() };
        found.then_some(Self {
            size,
            total: raw.total,
            free: raw.free,
            reserved: raw.reserved,
            surplus: raw.surplus,
            overcommit: raw.overcommit,
        })
    }

    /// Usable pages: free and not reserved, plus the pages that overcommit can add.
    pub fn usable(&self) -> u64 {
        let raw = ffi::ggml_hugepages_pool {
            page_size: self.size.bytes() as usize,
            total: self.total,
            free: self.free,
            reserved: self.reserved,
            surplus: self.surplus,
            overcommit: self.overcommit,
        };
        // SAFETY: reads a struct of numbers that outlives the call.
        unsafe { ffi::ggml_hugepages_pool_usable(&raw const raw) }
    }
}

/// Usable pages of a pool, 0 if the kernel has no pool of this size.
pub fn usable(root: &Root, size: HugePageSize) -> u64 {
    Pool::read(root, size).map_or(0, |pool| pool.usable())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn made_up_kernel(dir: &Path, size: HugePageSize, values: [u64; 5]) -> Root {
        let pool = dir.join("sys/kernel/mm/hugepages").join(size.sysfs_name());
        fs::create_dir_all(&pool).unwrap();
        let names = [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "surplus_hugepages",
            "nr_overcommit_hugepages",
        ];
        for (name, value) in names.iter().zip(values) {
            fs::write(pool.join(name), format!("{value}\n")).unwrap();
        }
        Root::at(dir).unwrap()
    }

    #[test]
    fn a_pool_is_read_from_any_root() {
        let dir = tempfile::tempdir().unwrap();
        let size = HugePageSize::new(1 << 30).unwrap();
        let root = made_up_kernel(dir.path(), size, [7, 6, 2, 1, 3]);
        let pool = Pool::read(&root, size).unwrap();
        assert_eq!(
            (
                pool.total,
                pool.free,
                pool.reserved,
                pool.surplus,
                pool.overcommit
            ),
            (7, 6, 2, 1, 3)
        );
        assert_eq!(pool.usable(), 6 - 2 + 3 - 1);
    }

    #[test]
    fn no_pool_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(Pool::read(&root, HugePageSize::new(2 << 20).unwrap()), None);
        assert_eq!(HugePageSize::of_images(&root), None);
    }

    #[test]
    fn images_lie_on_the_smallest_size_of_at_least_2_mib() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [64 << 10, 32 << 20, 16 << 30, 2 << 20] {
            made_up_kernel(dir.path(), HugePageSize::new(bytes).unwrap(), [0; 5]);
        }
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(HugePageSize::of_images(&root), HugePageSize::new(2 << 20));
    }
}
