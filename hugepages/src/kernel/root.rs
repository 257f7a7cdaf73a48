//! The file system as an argument.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The directory that contains `/sys` and `/proc`: the root of this machine, or a copy of another machine's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(CString);

/// The path of a root contains a zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the root path contains a zero byte")]
pub struct ZeroByte;

impl Root {
    /// This machine.
    pub fn system() -> Self {
        Self(CString::default())
    }

    /// A directory that contains `sys` and `proc`.
    ///
    /// # Errors
    /// [`ZeroByte`]
    ///
    /// ```
    /// use hugepages::kernel::{Root, sizes};
    ///
    /// let nothing = Root::at("/no/such/folder")?;
    /// assert_eq!(sizes::of_images(&nothing), None);
    /// # Ok::<(), hugepages::kernel::ZeroByte>(())
    /// ```
    pub fn at(path: impl AsRef<Path>) -> Result<Self, ZeroByte> {
        let bytes = path.as_ref().as_os_str().as_bytes();
        CString::new(bytes).map(Self).map_err(|_| ZeroByte)
    }

    /// The real location of a path such as `/proc/meminfo`.
    ///
    /// ```
    /// use std::path::Path;
    /// use hugepages::kernel::Root;
    ///
    /// assert_eq!(Root::system().path("/proc/meminfo"), Path::new("/proc/meminfo"));
    /// assert_eq!(Root::at("/tmp/made-up")?.path("/proc/meminfo"), Path::new("/tmp/made-up/proc/meminfo"));
    /// # Ok::<(), hugepages::kernel::ZeroByte>(())
    /// ```
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let mut whole = OsStr::from_bytes(self.0.to_bytes()).to_owned();
        whole.push(absolute.as_ref());
        whole.into()
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}
