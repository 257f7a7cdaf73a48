//! A directory for temporary files of the comparison.

use std::io;
use std::path::{Path, PathBuf};

use super::guardian::Guardian;

/// The directory is removed when the value is dropped, or by the guardian if this process is killed.
#[derive(Debug)]
pub struct Scratch {
    pub(super) dir: PathBuf,
    pub(super) guardian: Guardian,
}

impl Scratch {
    /// Creates a directory in `parent`, which only this user can enter.
    ///
    /// # Errors
    /// No space, no right, or no shell.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        let mut guardian = Guardian::start()?;
        let dir = tempfile::Builder::new()
            .prefix("llama-hugepages-compare-")
            .tempdir_in(parent)?;
        guardian.tell("folder", dir.path())?;
        Ok(Self {
            dir: dir.keep(),
            guardian,
        })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_goes_with_all_that_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new_in(parent.path()).unwrap();
        let path = scratch.path().to_owned();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/file"), "text").unwrap();
        drop(scratch);
        assert!(!path.exists());
        assert!(parent.path().exists());
    }

    #[test]
    fn a_part_of_its_path_stays() {
        let parent = tempfile::tempdir().unwrap();
        let [first_line, both] = ["one", "one\ntwo"].map(|name| parent.path().join(name));
        fs::create_dir(&first_line).unwrap();
        fs::create_dir(&both).unwrap();
        drop(Scratch::new_in(&both).unwrap());
        assert!(first_line.exists());
    }
}
