//! The files in a store.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self as sys, AtFlags, FileType};
use serde::Serialize;

use super::attached::{Attached, Process};
use super::{Info, Reason, Store, StoreError, engine};
use crate::kernel::Root;

/// A resident image, or a file with the name of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// Its name in the store.
    pub name: String,
    /// Why servers refuse it; `None` if they can attach.
    pub problem: Option<Reason>,
    /// Bytes of its huge pages, counted by the kernel.
    pub bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Manifest.
    #[serde(flatten)]
    pub info: Info,
    /// Attached processes that are visible to this user.
    pub attached: Vec<Process>,
}

/// A model file that was copied to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlainFile {
    /// Its name in the store.
    pub name: String,
    /// Bytes of its huge pages.
    pub bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Creation time, in seconds since 1970.
    pub created: i64,
    /// Attached processes that are visible to this user.
    pub attached: Vec<Process>,
}

/// All files of a store, at about one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entries {
    /// In order of their names.
    pub images: Vec<Image>,
    /// In order of their names.
    pub files: Vec<PlainFile>,
    /// Number of files that killed copies left; [`Store::garbage`] finds them.
    pub unfinished: usize,
    /// Number of files of other programs.
    pub others: usize,
    /// Number of processes whose mappings are not visible to this user.
    pub unread: usize,
}

impl Image {
    /// Whether a process uses it now.
    pub fn is_busy(&self) -> bool {
        self.info.is_attached || self.info.is_filling || !self.attached.is_empty()
    }

    /// Whether all segments are complete.
    pub fn is_complete(&self) -> bool {
        self.info.segments > 0 && self.info.complete == self.info.segments
    }
}

const UNFINISHED: &str = ".filling";

/// Name of an incomplete copy.
pub(super) fn unfinished_name(name: &str) -> String {
    format!(".{name}{UNFINISHED}")
}

pub(super) fn is_unfinished_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.ends_with(b".gguf.filling")
}

/// Name of the lock of a process that fills an image, or that was killed while it did.
pub(super) fn is_lock_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.ends_with(b".resident.lock")
}

/// Ending of a file that any llama.cpp can map.
pub(super) fn is_plain_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.len() > 5 && name.ends_with(b".gguf") && !name.starts_with(b".") && !name.contains(&b'/')
}

impl Store {
    /// Reads one image without its attached processes. `None` if the name does not exist, or is not the name of an image.
    pub fn image(&self, name: &str) -> Option<Image> {
        let data = sys::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if !engine::is_name(name.as_ref()) {
            return None;
        }
        let (info, problem) = engine::read(self.fd(), name.as_ref());
        Some(Image {
            name: name.to_owned(),
            problem,
            bytes: u64::try_from(data.st_blocks).unwrap_or(0) * 512,
            uid: data.st_uid,
            info,
            attached: Vec::new(),
        })
    }

    /// Reads all entries. It follows no link, opens only images, and takes no page.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn entries(&self) -> Result<Entries, StoreError> {
        let device = sys::fstat(self.fd()).map_err(|e| StoreError::io("stat", self.path(), e))?;
        let attached = Attached::read(&Root::system(), device.st_dev);
        let mut entries = Entries {
            images: Vec::new(),
            files: Vec::new(),
            unfinished: 0,
            others: 0,
            unread: attached.unread,
        };
        for name in self.names()? {
            // Removed meanwhile.
            let Ok(data) = sys::statat(self.fd(), &name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_file = FileType::from_raw_mode(data.st_mode) == FileType::RegularFile;
            let bytes = u64::try_from(data.st_blocks).unwrap_or(0) * 512;
            let processes = attached.to(data.st_dev, data.st_ino).to_vec();
            let shown = name.to_string_lossy().into_owned();
            if engine::is_name(&name) {
                let (info, problem) = engine::read(self.fd(), &name);
                entries.images.push(Image {
                    name: shown,
                    problem,
                    bytes,
                    uid: data.st_uid,
                    info,
                    attached: processes,
                });
            } else if is_file && is_plain_name(&name) {
                entries.files.push(PlainFile {
                    name: shown,
                    bytes,
                    uid: data.st_uid,
                    created: data.st_ctime,
                    attached: processes,
                });
            } else if is_file && is_unfinished_name(&name) {
                entries.unfinished += 1;
            } else if !is_lock_name(&name) {
                entries.others += 1;
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_as_ours_is_ours() {
        let plain = |name: &str| is_plain_name(OsStr::new(name));
        assert!(plain("a.gguf"));
        assert!(
            !plain(".gguf") && !plain(".a.gguf") && !plain("../a.gguf") && !plain("a.gguf.bak")
        );
        assert!(is_unfinished_name(OsStr::new(&unfinished_name("a.gguf"))));
        assert!(!is_unfinished_name(OsStr::new("a.gguf.filling")));
    }
}
