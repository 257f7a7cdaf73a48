//! The model file: its file system, direct I/O, and its mapping in stock llama.cpp.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use rustix::fs::{StatFs, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::Finding;
use super::host::{Host, Mapped};
use crate::kernel::Root;
use crate::kernel::processes::smaps;
use crate::size::ByteSize;

/// Bytes of the file that the check maps.
const SAMPLE: u64 = 64 << 20;

pub fn file(host: &Host) -> Vec<Finding> {
    let Some(path) = &host.model else {
        return Vec::new();
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            return vec![Finding::problem(
                format!("cannot read {}: {error}", path.display()),
                "a server of this user cannot read the model either",
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
            "tmpfs is memory, so huge pages hold a second copy of the model",
        ),
        "nfs" | "cifs" | "fuse" | "ceph" | "9p" => Finding::note(
            found,
            "the network or user space file system limits the speed of a load",
        ),
        "overlayfs" => Finding::note(
            found,
            "the model is in the container's own layer; a volume is faster",
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
            "a load reads through the page cache: it is slower and evicts files of others; ext4, xfs and btrfs accept O_DIRECT",
        ),
        Err(_) => return Vec::new(),
    }]
}

pub fn mapping(host: &Host) -> Vec<Finding> {
    let Some(Mapped { bytes, whole }) = host.mapped else {
        return Vec::new();
    };
    let found = format!(
        "stock: the kernel maps {} of a sample of {} from the middle of the model in pieces of 2 MiB",
        ByteSize::new(whole),
        ByteSize::new(bytes)
    );
    vec![if whole * 2 >= bytes {
        Finding::note(
            found,
            "the page cache already uses large pieces, so tokens/s will hardly change",
        )
    } else {
        Finding::ok(found)
    }]
}

pub fn repacking(host: &Host) -> Vec<Finding> {
    if host.repacked == 0 {
        return Vec::new();
    }
    let found = format!(
        "the server repacks {} of weights at each start without a store",
        ByteSize::new(host.repacked)
    );
    let meaning = "repacking can make prompts faster; `--no-repack` starts sooner. This command measures both on this machine";
    let model = host.model.as_deref().unwrap_or(Path::new("FILE"));
    let model = model.to_string_lossy();
    let command = ["hugepages", "compare", "-m", &model, "--cases", "repack"];
    vec![Finding::note(found, meaning).command(shell_words::join(command))]
}

/// Maps at most 64 MiB of the file like stock, touches them, and reads the size of their mapping from the kernel.
///
/// It uses the middle of the file, because the kernel's read-ahead starts with small pieces.
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
    // Populated by a system call, because a read of a truncated file or of a failing disk raises a signal.
    // SAFETY: the range is the mapping above, and the call changes no data.
    let touched = unsafe { madvise(start, len, Advice::LinuxPopulateRead) };
    let whole = smaps::read(&Root::system(), "self").ok().map(|smaps| {
        let mut mappings = smaps::mappings(&smaps);
        let ours = mappings.find(|mapping| mapping.start == start.addr() as u64);
        ours.map_or(0, |mapping| mapping.bytes("FilePmdMapped"))
    });
    // SAFETY: the range is the mapping above, and no reference to it remains.
    unsafe { munmap(start, len) }.ok()?;
    touched.ok()?;
    Some(Mapped {
        bytes,
        whole: whole?,
    })
}
