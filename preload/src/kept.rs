//! Descriptors of this library in a process whose program may close all descriptors, and open its own with the same numbers.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};

use crate::files::Facts;

/// A file that is closed with its last use, unless the program has closed it.
pub struct Kept {
    file: ManuallyDrop<File>,
    /// Device and inode.
    identity: (u64, u64),
}

impl Kept {
    /// `None`: the program has closed it already.
    pub fn new(file: File) -> Option<Self> {
        let file = ManuallyDrop::new(file);
        let identity = identity(&file)?;
        Some(Self { file, identity })
    }

    /// The descriptor; `None` after the program has closed it.
    pub fn descriptor(&self) -> Option<RawFd> {
        (identity(&self.file) == Some(self.identity)).then(|| self.file.as_raw_fd())
    }

    pub fn inode(&self) -> u64 {
        self.identity.1
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.descriptor().is_some() {
            // SAFETY: dropped here only.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

fn identity(file: &File) -> Option<(u64, u64)> {
    Facts::of(file).map(|facts| facts.identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_the_program_uses_again_is_not_closed() {
        let kept = Kept::new(File::open("/dev/null").unwrap()).unwrap();
        let number = kept.descriptor().unwrap();
        let other = File::open("/dev/zero").unwrap();
        // SAFETY: the number is that of the file above.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert_eq!(kept.descriptor(), None);
        drop(kept);
        // SAFETY: the program's file, which is open.
        assert_ne!(unsafe { libc::fcntl(number, libc::F_GETFD) }, -1);
        // SAFETY: opened by dup2.
        unsafe { libc::close(number) };
    }
}
