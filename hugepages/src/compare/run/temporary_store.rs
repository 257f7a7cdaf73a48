//! A temporary hugetlbfs mount for resident images, or a temporary directory in such a mount.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::guardian::Guardian;
use super::{CompareError, Scratch};
use crate::kernel::HugePageSize;

/// A temporary store. When the value is dropped, it is removed, and its images return their pages.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _guardian: Guardian,
}

impl Store {
    /// Mounts a hugetlbfs of a page size, in a new directory that only this user can enter.
    ///
    /// # Errors
    /// [`CompareError::NoStore`], for example without root.
    pub fn mount(size: HugePageSize) -> Result<Self, CompareError> {
        let no = |source| CompareError::NoStore { source };
        let mut guardian = Guardian::start().map_err(no)?;
        let dir = tempfile::Builder::new()
            .prefix("llama-hugepages-store-")
            .tempdir()
            .map_err(no)?;
        guardian.tell("mount", dir.path()).map_err(no)?;
        // The guardian unmounts the hugetlbfs first, then removes the directory.
        let dir = dir.keep();
        let store = Self {
            dir,
            _guardian: guardian,
        };
        mount(&store.dir, size).map_err(no)?;
        Ok(store)
    }

    /// Creates a directory in a mounted hugetlbfs, which only this user can enter. Its files return their pages when it is removed.
    ///
    /// # Errors
    /// [`CompareError::NoStore`], for example if this user may not write there.
    pub fn new_in(hugetlbfs: &Path) -> Result<Self, CompareError> {
        let scratch = Scratch::new_in(hugetlbfs);
        let Scratch { dir, guardian } =
            scratch.map_err(|source| CompareError::NoStore { source })?;
        Ok(Self {
            dir,
            _guardian: guardian,
        })
    }

    /// Path of its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn mount(dir: &Path, size: HugePageSize) -> io::Result<()> {
    let options = format!("pagesize={},mode=0700", size.short_name());
    let (dir, options) = (
        CString::new(dir.as_os_str().as_bytes())?,
        CString::new(options)?,
    );
    let kind = c"hugetlbfs";
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: C strings that outlive the call; hugetlbfs ignores the source.
    let mounted = unsafe {
        let source = kind.as_ptr();
        libc::mount(
            source,
            dir.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    if mounted == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
