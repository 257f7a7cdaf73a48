//! Removes images and plain files, unless a process uses them.

use std::ffi::{OsStr, OsString};

use rustix::fs::{self as sys, AtFlags, FileType};

use super::attached::{Attached, Process};
use super::{Store, StoreError, engine, image};
use crate::kernel::Root;

impl Store {
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
            let is_ours = engine::is_name(name)
                || image::is_plain_name(name)
                || image::is_unfinished_name(name)
                || image::is_lock_name(name);
            let data = sys::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
            is_ours && !data.is_ok_and(|data| FileType::from_raw_mode(data.st_mode).is_dir())
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
    fn attached_to(&self, name: &str) -> Vec<Process> {
        let Ok(data) = sys::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Vec::new();
        };
        Attached::read(&Root::system(), data.st_dev)
            .to(data.st_dev, data.st_ino)
            .to_vec()
    }

    fn no_such(&self, name: &OsStr) -> StoreError {
        StoreError::NoSuchImage {
            store: self.path().to_owned(),
            wanted: name.to_string_lossy().into_owned(),
        }
    }
}
