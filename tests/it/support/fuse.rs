//! A file system in user space with direct I/O: the kernel has no page cache for its files, and refuses shared mappings of them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request,
};

use super::guardian::Guardian;

/// The mount of a killed test remains, without a server.
const UNMOUNT: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    while read -r _; do :; done
    while grep -qF " $dir " /proc/self/mountinfo; do umount -l "$dir" || exit 1; done
    rmdir "$dir"
"#;

const NAME: &str = "model.gguf";
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(1);

/// One file, read from another file system.
struct OneFile {
    file: File,
    size: u64,
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        FileAttr {
            ino: inode,
            size: if is_file { self.size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.size.saturating_sub(offset).min(size.into());
        let mut bytes = vec![0; left as usize];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

/// A mount with a copy of one file.
pub struct DirectIoMount {
    path: PathBuf,
    // Before the guardian, which removes the folder.
    _session: BackgroundSession,
    _guardian: Guardian,
}

impl DirectIoMount {
    /// An error is the reason to skip the test: no right to mount, or no FUSE.
    pub fn of(source: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir()
            .expect("a temporary folder can be made")
            .keep();
        let mut guardian = Guardian::start(UNMOUNT, None);
        guardian.tell(dir.to_str().expect("a temporary folder has a plain name"));
        let file = File::open(source).expect("the model exists");
        let size = file.metadata().expect("an open file").size();
        let mut config = Config::default();
        config.mount_options.push(MountOption::RO);
        let session = fuser::spawn_mount(OneFile { file, size }, &dir, &config)
            .map_err(|error| format!("cannot mount a FUSE file system: {error}"))?;
        Ok(Self {
            path: fs::canonicalize(&dir).expect("just mounted").join(NAME),
            _session: session,
            _guardian: guardian,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
