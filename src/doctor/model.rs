//! The model file: where it lies, how it can be read, and what stock llama.cpp would make of it.

use crate::kernel_files;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use rustix::fs::{StatFs, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::{Finding, Host};
use crate::size::ByteSize;

/// How much of the file is looked at.
const SAMPLE: u64 = 64 << 20;

/// What a read-only mapping of a part of the model file lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Mapped and touched.
    pub bytes: u64,
    /// Of these, mapped with one entry for each 2 MiB.
    pub whole: u64,
}

pub fn file(host: &Host) -> Vec<Finding> {
    let Some(path) = &host.model else {
        return Vec::new();
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            return vec![Finding::problem(
                format!("cannot read {}: {error}", path.display()),
                "the server cannot either, if it runs as this user",
            )];
        }
    };
    let Ok(stat) = fstatfs(&file) else {
        return Vec::new();
    };
    let name = file_system(&stat);
    let found = format!("{} on {name}", path.display());
    vec![match name.as_str() {
        "tmpfs" => Finding::note(
            found,
            "the file is in memory already: on huge pages the model is there twice",
        ),
        "nfs" | "cifs" | "fuse" | "ceph" | "9p" => Finding::note(
            found,
            "a network or user space file system: the load is as fast as that is",
        ),
        "overlayfs" => Finding::note(
            found,
            "in a container's own layer; a volume is read with less in between",
        ),
        _ => Finding::ok(found),
    }]
}

/// Source: linux/magic.h
fn file_system(stat: &StatFs) -> String {
    let name = match stat.f_type.cast_unsigned() & 0xffff_ffff {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        0x6573_5546 => "fuse",
        0x00c3_6400 => "ceph",
        0x0102_1997 => "9p",
        0x9584_58f6 => "hugetlbfs",
        other => return format!("a file system of type {other:#x}"),
    };
    name.to_owned()
}

pub fn direct_io(host: &Host) -> Vec<Finding> {
    let Some(path) = host.model.as_deref().filter(|path| path.is_file()) else {
        return Vec::new();
    };
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    vec![match direct {
        Ok(_) => Finding::ok("O_DIRECT is accepted for the model file"),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Finding::warning(
            "the file system refuses O_DIRECT",
            "the load goes through the page cache: slower, and it evicts what others have there; ext4, xfs and btrfs accept it",
        ),
        Err(_) => return Vec::new(),
    }]
}

pub fn mapping(host: &Host) -> Vec<Finding> {
    let Some(Mapped { bytes, whole }) = host.mapped else {
        return Vec::new();
    };
    let found = format!(
        "stock: {} of {} in the middle of the model are mapped with entries of 2 MiB",
        ByteSize::new(whole),
        ByteSize::new(bytes)
    );
    vec![if whole * 2 >= bytes {
        Finding::note(
            found,
            "the page cache has large pieces already: tokens/s will hardly change",
        )
    } else {
        Finding::ok(found)
    }]
}

/// Maps a part of the file as stock does, touches it, and asks the kernel what it lies on. It reads at most 64 MiB.
///
/// From the middle: the kernel reads ahead in pieces that grow, so the first ones are small whatever follows.
pub fn mapped(path: &Path) -> Option<Mapped> {
    let file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let bytes = size.min(SAMPLE);
    let middle = (size - bytes) / 2 / SAMPLE * SAMPLE;
    let len = usize::try_from(bytes).ok().filter(|len| *len > 0)?;
    // SAFETY: a new mapping at a place that the kernel chooses; nothing reads it.
    let start = unsafe {
        mmap(
            ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::SHARED,
            &file,
            middle,
        )
    }
    .ok()?;
    // Not by reading: a file that is cut short meanwhile, or a disk that fails, would end this process.
    // SAFETY: the mapping above, of which nothing changes.
    let touched = unsafe { madvise(start, len, Advice::LinuxPopulateRead) };
    let whole = fs::read_to_string("/proc/self/smaps").ok().map(|smaps| {
        let address = format!("{:x}-", start.addr());
        let lines = smaps.lines().skip_while(|line| !line.starts_with(&address));
        lines
            .skip(1)
            .find_map(|line| kernel_files::kib_field(line, "FilePmdMapped"))
            .unwrap_or(0)
    });
    // SAFETY: the mapping above, of which nothing is kept.
    unsafe { munmap(start, len) }.ok()?;
    touched.ok()?;
    Some(Mapped {
        bytes,
        whole: whole?,
    })
}
