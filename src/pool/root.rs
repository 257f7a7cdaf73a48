//! The file system as an argument.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// The directory that contains `/sys` and `/proc`: the root of this machine, or a copy of another machine's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(CString);

impl Root {
    /// This machine.
    pub fn system() -> Self {
        Self(CString::default())
    }

    /// A directory that contains `sys` and `proc`.
    ///
    /// # Errors
    /// [`Error::ZeroByte`]
    ///
    /// ```
    /// use llama_hugepages::pool::{HugePageSize, Root};
    ///
    /// let nothing = Root::at("/no/such/folder")?;
    /// assert_eq!(HugePageSize::of_images(&nothing), None);
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn at(path: impl AsRef<Path>) -> Result<Self, Error> {
        let bytes = path.as_ref().as_os_str().as_bytes();
        CString::new(bytes).map(Self).map_err(|_| Error::ZeroByte {
            what: "the root path",
        })
    }

    /// The real location of a path such as `/proc/meminfo`.
    ///
    /// ```
    /// use std::path::Path;
    /// use llama_hugepages::pool::Root;
    ///
    /// assert_eq!(Root::system().path("/proc/meminfo"), Path::new("/proc/meminfo"));
    /// assert_eq!(Root::at("/tmp/made-up")?.path("/proc/meminfo"), Path::new("/tmp/made-up/proc/meminfo"));
    /// # Ok::<(), llama_hugepages::Error>(())
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
