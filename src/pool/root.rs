//! The file system as an argument.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Error;

/// Where `/sys` and `/proc` are found: this machine's, or a folder that looks like another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(CString);

impl Root {
    /// This machine.
    pub fn system() -> Self {
        Self(CString::default())
    }

    /// A folder with a `sys` and a `proc` in it.
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

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}
