//! The library's calls on files, except its output (`log.rs`).
//!
//! A seccomp filter may kill the program for a call that neither the program nor the C library makes. So this file avoids `statx`, which
//! std makes for the metadata of a file, and before it reads a file whole; and it lets the engine punch holes, because the engine first
//! asks in a child process whether it may.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::Read;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::ffi;
use crate::ranges::Span;

/// The facts of `fstat`.
pub struct Facts {
    pub is_regular: bool,
    /// Bytes.
    pub size: usize,
    /// Device and inode.
    pub identity: (u64, u64),
}

impl Facts {
    /// `None` if the descriptor is closed.
    pub fn of(file: &File) -> Option<Self> {
        // SAFETY: zero is a value of all fields.
        let mut found: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: room for one answer.
        let is_known = unsafe { libc::fstat(file.as_raw_fd(), &raw mut found) } == 0;
        is_known.then(|| Self {
            is_regular: found.st_mode & libc::S_IFMT == libc::S_IFREG,
            size: usize::try_from(found.st_size).unwrap_or(0),
            identity: (found.st_dev, found.st_ino),
        })
    }
}

/// The page size of the file system, if it is a hugetlbfs.
pub fn page_of_hugetlbfs(file: &File) -> Option<usize> {
    // SAFETY: zero is a value of all fields.
    let mut found: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: room for one answer.
    let is_known = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) } == 0;
    (is_known && found.f_type == libc::HUGETLBFS_MAGIC)
        .then(|| usize::try_from(found.f_bsize).ok())
        .flatten()
}

#[repr(align(4096))]
struct Block([u8; 4096]);

/// Whether a file starts with these bytes.
pub fn starts_with(file: &File, bytes: &[u8]) -> bool {
    // open(2): a file with O_DIRECT is read in whole, aligned blocks.
    let mut start = Block([0; 4096]);
    file.read_at(&mut start.0, 0).is_ok() && start.0.starts_with(bytes)
}

/// The text of a file in /proc.
pub fn read_text(path: &str) -> Option<String> {
    let mut text = String::new();
    // `read_to_string` of a file asks for its size, that of a part does not.
    let mut all = File::open(path).ok()?.take(u64::MAX);
    all.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The open descriptors of this process.
pub fn descriptors() -> Vec<c_int> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers = entries.flatten().map(|entry| entry.file_name());
    numbers
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

/// The name of an open file in /proc, which this process can open again.
pub fn name_of(fd: c_int) -> String {
    format!("/proc/self/fd/{fd}")
}

/// The path of an open file.
pub fn path_of(fd: c_int) -> Option<PathBuf> {
    fs::read_link(name_of(fd)).ok()
}

/// Whether a link leads to a path that starts with this text.
pub fn leads_to(link: &Path, start: &str) -> bool {
    fs::read_link(link)
        .is_ok_and(|target| target.as_os_str().as_bytes().starts_with(start.as_bytes()))
}

/// A file of the program, which only the program closes.
pub fn borrow(fd: c_int) -> ManuallyDrop<File> {
    // SAFETY: never dropped.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// A copy of a descriptor, so that the program may close its own.
pub fn duplicate(fd: c_int) -> Option<File> {
    // High, because programs expect low numbers to be theirs, unless a limit allows only low ones.
    let copy = [100, 3]
        .into_iter()
        // SAFETY: only takes a number.
        .map(|least| unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })
        .find(|copy| *copy != -1)?;
    // SAFETY: a descriptor that this process owns, from the call above.
    Some(unsafe { File::from_raw_fd(copy) })
}

/// Returns the pages of a file of huge pages. If the kernel refuses, they return at the end of the program.
pub fn punch(fd: c_int, span: &Span) {
    // SAFETY: a file of this library, in which the range belongs to no mapping.
    unsafe { ffi::ggml_hugepages_file_punch(fd, span.start, span.end) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_has_the_facts_that_std_finds() {
        use std::os::unix::fs::MetadataExt;
        let mut file = tempfile();
        file.write_all(b"GGUF and more").unwrap();
        let facts = Facts::of(&file).unwrap();
        let metadata = file.metadata().unwrap();
        assert!(facts.is_regular);
        assert_eq!(facts.size as u64, metadata.len());
        assert_eq!(facts.identity, (metadata.dev(), metadata.ino()));
        assert!(starts_with(&file, b"GGUF"));
        assert!(!starts_with(&file, b"GGML"));
        assert!(!Facts::of(&File::open("/").unwrap()).unwrap().is_regular);
    }

    #[test]
    fn a_file_without_a_size_is_read_whole() {
        let text = read_text("/proc/self/smaps").unwrap();
        assert!(text.contains("[stack]") && text.ends_with('\n'), "{text}");
    }

    #[test]
    fn an_open_file_is_found_among_the_descriptors() {
        let file = File::open("/dev/null").unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        assert!(copy.as_raw_fd() >= 100);
        assert!(descriptors().contains(&copy.as_raw_fd()));
        assert_eq!(path_of(copy.as_raw_fd()), Some("/dev/null".into()));
    }

    /// A file without a name.
    fn tempfile() -> File {
        // SAFETY: a C string.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
        assert_ne!(fd, -1);
        // SAFETY: made above.
        unsafe { File::from_raw_fd(fd) }
    }
}
