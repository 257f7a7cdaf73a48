//! An open store: its directory, its page size, and its free pages.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, Mode, OFlags};

use super::StoreError;
use super::engine;
use crate::kernel::{self, HugePageSize, Root};

/// An open hugetlbfs directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    page_size: HugePageSize,
    dir: OwnedFd,
}

impl Store {
    /// The value `auto`, which selects the first mounted store that this user can use.
    pub const AUTO: &str = "auto";

    /// Opens the directory, or the one that `auto` finds.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] if the directory does not exist, is not on hugetlbfs, or is writable for others.
    ///
    /// ```no_run
    /// use hugepages::store::Store;
    ///
    /// let store = Store::open("auto")?;
    /// for image in store.entries()?.images {
    ///     println!("{} of {}: {} bytes", image.name, image.info.source.display(), image.bytes);
    /// }
    /// # Ok::<(), hugepages::store::StoreError>(())
    /// ```
    pub fn open(wanted: impl AsRef<OsStr>) -> Result<Self, StoreError> {
        let wanted = wanted.as_ref();
        let (path, page_size) = engine::find(wanted, None).map_err(|said| StoreError::NoStore {
            wanted: wanted.to_string_lossy().into_owned(),
            said,
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = sys::open(&path, flags, Mode::empty())
            .map_err(|source| StoreError::io("open", &path, source))?;
        Ok(Self {
            path,
            page_size,
            dir,
        })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Page size of its mount.
    pub fn page_size(&self) -> HugePageSize {
        self.page_size
    }

    /// Usable pages for another image: the minimum of the pool and of the room up to the mount's limit.
    pub fn free_pages(&self) -> u64 {
        let usable = kernel::usable(&Root::system(), self.page_size);
        self.room().map_or(usable, |room| room.min(usable))
    }

    /// Pages up to the mount's limit. `None` without a limit.
    pub fn room(&self) -> Option<u64> {
        let limits = sys::fstatvfs(&self.dir).ok()?;
        (limits.f_blocks > 0).then_some(limits.f_bavail)
    }

    pub(super) fn unlink(&self, name: &OsStr) -> Result<(), StoreError> {
        sys::unlinkat(&self.dir, name, AtFlags::empty())
            .map_err(|source| StoreError::io("remove", &self.path.join(name), source))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Names of all entries, sorted.
    pub(super) fn names(&self) -> Result<Vec<OsString>, StoreError> {
        let failed = |source| StoreError::io("read", &self.path, source);
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}
