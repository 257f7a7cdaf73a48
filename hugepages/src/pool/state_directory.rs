//! The directory of the journal and the lock.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;

use super::PoolError;
use crate::kernel::Root;

/// A directory that only its owner can change, because a later command of root undoes what its journal lists.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
}

/// Held during a change. The kernel releases it when the value is dropped or the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl State {
    /// `$LLAMA_HUGEPAGES_STATE`, or `/run/llama-hugepages`.
    ///
    /// # Errors
    /// [`PoolError::UnsafeState`], [`PoolError::Io`]
    pub fn open(root: &Root) -> Result<Self, PoolError> {
        let chosen = env::var_os("LLAMA_HUGEPAGES_STATE").filter(|dir| !dir.is_empty());
        Self::at(&chosen.map_or_else(|| root.path("/run/llama-hugepages"), PathBuf::from))
    }

    /// Another directory, created if it does not exist.
    ///
    /// # Errors
    /// As [`State::open`].
    pub fn at(dir: &Path) -> Result<Self, PoolError> {
        let made = DirBuilder::new().mode(0o755).create(dir);
        if let Err(source) = made
            && source.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(PoolError::io("create", dir, source));
        }
        // Without following a link, because the user who can place a link would choose the directory.
        let data = fs::symlink_metadata(dir).map_err(|e| PoolError::io("stat", dir, e))?;
        let owner = data.uid() == 0 || data.uid() == geteuid().as_raw();
        if !data.is_dir() || !owner || data.mode() & 0o022 != 0 {
            return Err(PoolError::UnsafeState(dir.to_owned()));
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Waits for the lock. `waiting` is called once, after a second without it.
    ///
    /// # Errors
    /// [`PoolError::Io`]
    pub fn lock(&self, waiting: impl FnOnce()) -> Result<Lock, PoolError> {
        let path = self.dir.join("lock");
        let failed = |source| PoolError::io("lock", &path, source);
        let file = open(&path).map_err(failed)?;
        for _ in 0..20 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        waiting();
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(Lock(file))
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }
}

/// Opens a file for reading and writing, creates it if needed, and never follows a link.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (open, link) = (dir.path().join("open"), dir.path().join("link"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        symlink(dir.path(), &link).unwrap();
        for bad in [open, link] {
            assert!(matches!(State::at(&bad), Err(PoolError::UnsafeState(_))));
        }
        let made = dir.path().join("made");
        State::at(&made).unwrap();
        assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o755);
    }
}
