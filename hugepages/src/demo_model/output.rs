//! The target of a model: a file or shards.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

/// The target of a model.
pub struct Output<'a> {
    /// The file, or the prefix of the shards: `a/x.gguf` gives `a/x-00001-of-00003.gguf`.
    pub path: &'a Path,
    /// Number of files. If more than one, the names follow upstream's scheme of shards.
    pub shards: u16,
    /// Whether to replace existing files.
    pub overwrite: bool,
    /// Gets the bytes of data written so far and their total; `Break` ends the write with [`Error::Cancelled`](super::Error::Cancelled).
    pub progress: &'a dyn Fn(u64, u64) -> ControlFlow<()>,
}

impl<'a> Output<'a> {
    /// One file. Replaces no file and reports no progress.
    pub fn file(path: &'a Path) -> Self {
        Self {
            path,
            shards: 1,
            overwrite: false,
            progress: &|_, _| ControlFlow::Continue(()),
        }
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            shards,
            overwrite,
            progress: _,
        } = self;
        f.debug_struct("Output")
            .field("path", path)
            .field("shards", shards)
            .field("overwrite", overwrite)
            .finish_non_exhaustive()
    }
}
