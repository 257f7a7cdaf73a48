//! Copies of model files on hugetlbfs, which any llama.cpp can map.
//!
//! hugetlbfs has no write(2), so the copy is written through a mapping. The mapping reserves all pages before the first read.
//! `MADV_POPULATE_WRITE` takes them, because it reports a shortage as an error, and a store would end in SIGBUS. An incomplete
//! copy has a hidden name and a lock. A killed process leaves the hidden name without the lock.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    self as sys, Advice as FileAdvice, AtFlags, FlockOperation, Mode, OFlags, RenameFlags,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::process::{Resource, getrlimit};

use super::image::{is_plain_name, unfinished_name};
use super::names::shards;
use super::{Store, StoreError};
use crate::kernel::{Pool, Root};

/// Bytes that are populated and read in one step, so that the zeroed pages are still in the CPU cache.
const PIECE: usize = 16 << 20;

/// A plain file in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// Its name in the store.
    pub name: String,
    /// Size of the model file.
    pub bytes: u64,
    /// Huge pages of the copy.
    pub pages: u64,
}

impl Store {
    /// Copies a model: one file, or all shards from the first one. `progress` gets the bytes done and the total.
    ///
    /// After an error no part of the copy remains.
    ///
    /// # Errors
    /// [`StoreError::FileShort`], [`StoreError::FileExists`], [`StoreError::FileBusy`], [`StoreError::Io`], and
    /// [`StoreError::Cancelled`] once `stop` is set.
    pub fn copy(
        &self,
        model: &Path,
        stop: &AtomicBool,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Vec<Copied>, StoreError> {
        let sources: Vec<Source> = shards(model)
            .iter()
            .map(|path| Source::open(self, path))
            .collect::<Result<_, _>>()?;
        for source in &sources {
            self.may_be_as_large(source)?;
        }
        let total = sources.iter().map(|source| source.size).sum();
        let pages = sources.iter().map(|source| self.pages_for(source)).sum();
        self.enough(&sources[0].name, pages)?;
        let mut before = 0;
        let mut unfinished = Vec::new();
        for source in &sources {
            let mut copy = Copy::begin(self, source)?;
            copy.fill(source, pages, stop, &mut |done| {
                progress(before + done, total);
            })?;
            before += source.size;
            unfinished.push(copy);
        }
        let mut finished: Vec<String> = Vec::new();
        for copy in unfinished {
            let name = copy.name.clone();
            if let Err(error) = copy.finish() {
                for name in &finished {
                    let _ = self.unlink(OsStr::new(name));
                }
                return Err(error);
            }
            finished.push(name);
        }
        let copied = sources.iter().map(|source| Copied {
            name: source.name.clone(),
            bytes: source.size,
            pages: self.pages_for(source),
        });
        Ok(copied.collect())
    }

    /// Pages that the model's files take as plain files.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::FileName`], [`StoreError::FileExists`]
    pub fn pages_to_copy(&self, model: &Path) -> Result<u64, StoreError> {
        let mut pages = 0;
        for path in shards(model) {
            pages += self.pages_for(&Source::open(self, &path)?);
        }
        Ok(pages)
    }

    fn pages_for(&self, source: &Source) -> u64 {
        self.page_size().pages_for(source.size)
    }

    /// Checks the limit for the size of files, because the kernel would send SIGXFSZ, which ends the process.
    fn may_be_as_large(&self, source: &Source) -> Result<(), StoreError> {
        let bytes = source.size.next_multiple_of(self.page_size().bytes());
        match getrlimit(Resource::Fsize).current {
            Some(limit) if limit < bytes => {
                let path = self.path().join(&source.name);
                Err(StoreError::io("create", &path, Errno::FBIG))
            }
            _ => Ok(()),
        }
    }

    /// Checks the free pages before the copy. The reservation later detects pages that others took meanwhile.
    fn enough(&self, name: &str, pages: u64) -> Result<(), StoreError> {
        if pages <= self.free_pages() {
            return Ok(());
        }
        Err(self.short(name, pages))
    }

    fn short(&self, name: &str, pages: u64) -> StoreError {
        let size = self.page_size();
        StoreError::FileShort {
            name: name.to_owned(),
            pages,
            size,
            usable: Pool::read(&Root::system(), size).map_or(0, |pool| pool.usable()),
            room: self.room(),
        }
    }

    /// Files that killed copies left.
    pub(super) fn abandoned(&self) -> Result<Vec<String>, StoreError> {
        let mut abandoned = Vec::new();
        for name in self.names()? {
            if super::image::is_unfinished_name(&name) && self.is_abandoned(&name) {
                abandoned.push(name.to_string_lossy().into_owned());
            }
        }
        Ok(abandoned)
    }

    /// Removes a file that a killed copy left.
    pub(super) fn remove_abandoned(&self, name: &str) -> Result<(), StoreError> {
        if self.is_abandoned(OsStr::new(name)) {
            return self.unlink(OsStr::new(name));
        }
        Ok(())
    }

    /// Whether no process writes the file: a writer holds a lock. Follows no link and does not block, because another user may have placed
    /// a link or a pipe.
    fn is_abandoned(&self, name: &OsStr) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        sys::openat(self.fd(), name, flags, Mode::empty())
            .is_ok_and(|file| sys::flock(&file, FlockOperation::NonBlockingLockShared).is_ok())
    }
}

/// A file to copy.
struct Source {
    file: File,
    path: std::path::PathBuf,
    name: String,
    size: u64,
}

impl Source {
    fn open(store: &Store, path: &Path) -> Result<Self, StoreError> {
        let name = path.file_name().unwrap_or_default();
        let shown = name.to_string_lossy().into_owned();
        if !is_plain_name(name) || name.to_str().is_none() {
            return Err(StoreError::FileName { name: shown });
        }
        let failed = |source| StoreError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        if !data.is_file() || data.len() == 0 {
            return Err(failed(std::io::Error::other(
                "not a regular file, or empty",
            )));
        }
        if sys::statat(store.fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(StoreError::FileExists { name: shown });
        }
        // Only advice, so a refusal of the file system does not matter.
        let _ = sys::fadvise(&file, 0, None, FileAdvice::Sequential);
        Ok(Self {
            file,
            path: path.to_owned(),
            name: shown,
            size: data.len(),
        })
    }
}

/// An incomplete copy, removed when the value is dropped.
struct Copy<'a> {
    store: &'a Store,
    file: OwnedFd,
    name: String,
    unfinished: String,
    is_finished: bool,
}

impl<'a> Copy<'a> {
    fn begin(store: &'a Store, source: &Source) -> Result<Self, StoreError> {
        let unfinished = unfinished_name(&source.name);
        let failed =
            |errno: Errno| StoreError::io("create", &store.path().join(&unfinished), errno);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Removes a file that a killed copy left. Another process may do this to our file before we lock it.
        for _ in 0..10 {
            let file = match sys::openat(store.fd(), &unfinished, flags, Mode::from(0o644)) {
                Ok(file) => file,
                Err(Errno::EXIST) => {
                    store.remove_abandoned(&unfinished)?;
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            };
            if sys::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && is_still(store, &unfinished, &file)
            {
                return Ok(Self {
                    store,
                    file,
                    name: source.name.clone(),
                    unfinished,
                    is_finished: false,
                });
            }
        }
        Err(StoreError::FileBusy {
            name: source.name.clone(),
        })
    }

    /// `pages` is the need of the whole model, for the error message.
    fn fill(
        &mut self,
        source: &Source,
        pages: u64,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let page = self.store.page_size().bytes();
        let length = source.size.next_multiple_of(page);
        let path = self.store.path().join(&self.unfinished);
        sys::ftruncate(&self.file, length).map_err(|e| StoreError::io("resize", &path, e))?;
        let short = || self.store.short(&source.name, pages);
        let mut map = Map::new(&self.file, length as usize).map_err(|errno| match errno {
            Errno::NOMEM | Errno::NOSPC => short(),
            errno => StoreError::io("map", &path, errno),
        })?;
        let piece = PIECE.next_multiple_of(page as usize);
        let mut first = 0;
        while first < length as usize {
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Cancelled);
            }
            let last = (first + piece).min(length as usize);
            let bytes = map.populate(first, last).map_err(|errno| match errno {
                // A cgroup limit, which the reservation does not check.
                Errno::FAULT | Errno::NOMEM | Errno::HWPOISON => short(),
                errno => StoreError::io("write", &path, errno),
            })?;
            let wanted = bytes.len().min(source.size as usize - first);
            source
                .file
                .read_exact_at(&mut bytes[..wanted], first as u64)
                .map_err(|error| StoreError::io("read", &source.path, error))?;
            first = last;
            progress((first as u64).min(source.size));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        let dir = self.store.fd();
        sys::renameat_with(
            dir,
            &self.unfinished,
            dir,
            &self.name,
            RenameFlags::NOREPLACE,
        )
        .map_err(|errno| match errno {
            Errno::EXIST => StoreError::FileExists {
                name: self.name.clone(),
            },
            errno => StoreError::io("rename", &self.store.path().join(&self.unfinished), errno),
        })?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = self.store.unlink(OsStr::new(&self.unfinished));
        }
    }
}

/// Whether the name still refers to this file.
fn is_still(store: &Store, name: &str, file: &OwnedFd) -> bool {
    let named = sys::statat(store.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
    let opened = sys::fstat(file);
    named.is_ok_and(|named| opened.is_ok_and(|opened| named.st_ino == opened.st_ino))
}

/// A mapping of the whole file for writing. The mapping reserves the pages.
struct Map {
    base: *mut u8,
    length: usize,
}

impl Map {
    fn new(file: &OwnedFd, length: usize) -> Result<Self, Errno> {
        // SAFETY: a new mapping, of a place that the kernel chooses.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            length,
        })
    }

    /// Populates the bytes `[first, last)` and returns them.
    fn populate(&mut self, first: usize, last: usize) -> Result<&mut [u8], Errno> {
        assert!(first < last && last <= self.length);
        // SAFETY: the range is in the mapping, see the line above.
        let at = unsafe { self.base.add(first) };
        loop {
            // SAFETY: the range is mapped, and no other code knows its address.
            match unsafe { madvise(at.cast(), last - first, Advice::LinuxPopulateWrite) } {
                Err(Errno::INTR) => {}
                done => break done?,
            }
        }
        // SAFETY: mapped, populated, and borrowed from `self` as a whole.
        Ok(unsafe { slice::from_raw_parts_mut(at, last - first) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}
