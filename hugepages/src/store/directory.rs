//! An open store.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, Mode, OFlags};

use crate::kernel::{self, HugePageSize, Root};
use llama_hugepages::ffi;

use super::attached::{Attached, Process};
use super::{StoreError, engine, image};

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
    ///     println!("{} of {}: {} bytes", image.name, image.info.source, image.bytes);
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

    /// Compares an image with its checksums. `progress` gets the bytes done and the total; it returns `false` to stop.
    ///
    /// # Errors
    /// [`StoreError::Differs`], [`StoreError::Cancelled`], and [`StoreError::Verify`] if servers refuse the image for another reason.
    pub fn verify(
        &self,
        name: &str,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<(), StoreError> {
        let failed = |said| StoreError::Verify {
            name: name.to_owned(),
            said,
        };
        let (_, problem) = engine::read(self.fd(), name.as_ref());
        if let Some(reason) = problem {
            return Err(failed(reason));
        }
        engine::verify(self.fd(), name.as_ref(), &mut progress).map_err(|failure| {
            match failure.status {
                ffi::GGML_HUGEPAGES_STATUS_ABORTED => StoreError::Cancelled,
                ffi::GGML_HUGEPAGES_STATUS_INVALID => StoreError::Differs {
                    name: name.to_owned(),
                    said: failure.reason,
                },
                _ => failed(failure.reason),
            }
        })
    }

    /// Removes an image or a plain file. Refuses a file in use, or with `force` removes its name; then its pages return when the
    /// last process ends.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Drop`], [`StoreError::Io`], and [`StoreError::NoSuchImage`] for files of other programs.
    pub fn drop(&self, name: &str, force: bool) -> Result<(), StoreError> {
        let name = OsStr::new(name);
        if engine::is_name(name) {
            return engine::drop(self.fd(), name, force).map_err(|failure| {
                let (info, _) = engine::read(self.fd(), name);
                let name = name.to_string_lossy().into_owned();
                // Locks also show processes that are not visible from here.
                if info.is_attached || info.is_filling {
                    let by = self.attached_to(&name);
                    return StoreError::InUse { name, by };
                }
                StoreError::Drop {
                    name,
                    said: failure.reason,
                }
            });
        }
        if !image::is_plain_name(name) {
            return Err(self.no_such(name));
        }
        let shown = name.to_string_lossy().into_owned();
        let by = self.attached_to(&shown);
        if !by.is_empty() && !force {
            return Err(StoreError::InUse { name: shown, by });
        }
        self.unlink(name)
    }

    /// Names of our files, and of all other files.
    pub(super) fn sorted(&self) -> Result<(Vec<String>, Vec<String>), StoreError> {
        let names = self.names()?.into_iter();
        let (ours, others): (Vec<_>, Vec<_>) = names.partition(|name| {
            engine::is_name(name) || image::is_plain_name(name) || image::is_unfinished_name(name)
        });
        let shown = |names: Vec<OsString>| {
            let names = names.into_iter();
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        };
        Ok((shown(ours), shown(others)))
    }

    /// Removes the name of one of our files.
    pub(super) fn drop_any(&self, name: &str) -> Result<(), StoreError> {
        if image::is_unfinished_name(OsStr::new(name)) {
            return self.remove_abandoned(name);
        }
        self.drop(name, true)
    }

    /// Processes that map files of the store, as far as they are visible to this user.
    pub(super) fn attached_to(&self, name: &str) -> Vec<Process> {
        let Ok(data) = sys::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Vec::new();
        };
        Attached::read(&Root::system(), data.st_dev)
            .to(data.st_dev, data.st_ino)
            .to_vec()
    }

    pub(super) fn unlink(&self, name: &OsStr) -> Result<(), StoreError> {
        sys::unlinkat(&self.dir, name, AtFlags::empty())
            .map_err(|source| StoreError::io("remove", &self.path.join(name), source))
    }

    pub(super) fn no_such(&self, name: &OsStr) -> StoreError {
        StoreError::NoSuchImage {
            store: self.path.clone(),
            wanted: name.to_string_lossy().into_owned(),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Names of all entries.
    pub(super) fn names(&self) -> Result<Vec<OsString>, StoreError> {
        use std::os::unix::ffi::OsStrExt;

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
