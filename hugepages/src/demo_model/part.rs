//! A file that gets its final name only when it is complete, and the checks before a write.

use std::{
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::Error;
use crate::size::ByteSize;

/// Checks that the final name is free. Refuses devices and directories even with `overwrite`, because a rename would replace
/// `/dev/null`.
pub(super) fn check_target(path: &Path, overwrite: bool) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(Error::NotAFile(path.into())),
        Ok(_) if !overwrite => Err(Error::Exists(path.into())),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            what: "stat",
            path: path.into(),
            source,
        }),
    }
}

pub(super) fn check_space(dir: &Path, need: u64) -> Result<(), Error> {
    let free = free_bytes(dir).map_err(|source| Error::Io {
        what: "look at",
        path: dir.into(),
        source,
    })?;
    if free < need {
        return Err(Error::NoSpace {
            dir: dir.into(),
            need: ByteSize::new(need),
            free: ByteSize::new(free),
        });
    }
    Ok(())
}

/// Bytes that an ordinary user can still write in the file system of `dir`.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all bytes zero is a valid value of a struct of integers.
    let mut answer: libc::statvfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: `dir` is a C string and `answer` the struct that the call fills; both outlive the call.
    if unsafe { libc::statvfs64(dir.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A complete file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFile {
    /// Its final name.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// An incomplete file: written as `NAME.part`, locked against a second writer, removed unless finished.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    /// Bytes written so far.
    pub(super) bytes: u64,
    finished: bool,
}

impl Part {
    pub(super) fn create(target: &Path) -> Result<Self, Error> {
        let mut name = OsString::from(target);
        name.push(".part");
        let path = PathBuf::from(name);
        let io = |what| {
            move |path: &Path, source| Error::Io {
                what,
                path: path.into(),
                source,
            }
        };
        loop {
            // Not truncated before the lock, because another process may be writing it.
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|source| io("create")(&path, source))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Busy(path)),
                Err(TryLockError::Error(source)) => return Err(io("lock")(&path, source)),
            }
            // Its writer may have renamed or removed the file between the two calls above, so the name may refer to another file.
            let ours = file
                .metadata()
                .map_err(|source| io("stat")(&path, source))?;
            if fs::metadata(&path)
                .is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino()))
            {
                let part = Self {
                    file,
                    path,
                    target: target.into(),
                    bytes: 0,
                    finished: false,
                };
                part.file
                    .set_len(0)
                    .map_err(|source| io("truncate")(&part.path, source))?;
                return Ok(part);
            }
        }
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        self.file.write_all(data).map_err(|source| Error::Io {
            what: "write",
            path: self.path.clone(),
            source,
        })?;
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Gives the file its final name.
    pub(super) fn finish(mut self) -> Result<WrittenFile, Error> {
        fs::rename(&self.path, &self.target).map_err(|source| Error::Io {
            what: "rename to",
            path: self.target.clone(),
            source,
        })?;
        self.finished = true;
        Ok(WrittenFile {
            path: std::mem::take(&mut self.target),
            bytes: self.bytes,
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_known_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_space(dir.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }));
        assert!(
            error.to_string().contains("16777216.00 TiB needed"),
            "{error}"
        );
        assert!(error.hint().is_some());
        check_space(dir.path(), 1).unwrap();
    }

    #[test]
    fn a_second_writer_of_the_same_file_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let first = Part::create(&path).unwrap();
        assert!(matches!(Part::create(&path), Err(Error::Busy(_))));
        drop(first);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        // The incomplete file of a killed process is used again.
        fs::write(dir.path().join("x.gguf.part"), vec![1; 5000]).unwrap();
        Part::create(&path).unwrap().finish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
