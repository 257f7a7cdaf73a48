//! A process's memory as the kernel reports it: `/proc/PID/smaps`, `status` and `mem`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One mapping.
#[derive(Debug)]
pub struct Vma {
    pub addresses: Range<u64>,
    /// `r--s`
    pub perms: String,
    /// The offset of the mapping in its file.
    pub offset: u64,
    pub inode: u64,
    /// The path as the kernel prints it; empty for anonymous memory.
    pub path: String,
    /// `Rss`, `KernelPageSize` and so on, in bytes.
    sizes: HashMap<String, u64>,
    /// The two-letter flags.
    pub flags: Vec<String>,
}

impl Vma {
    pub fn size(&self, field: &str) -> u64 {
        *self
            .sizes
            .get(field)
            .unwrap_or_else(|| panic!("smaps has no {field}"))
    }

    pub fn is_huge(&self) -> bool {
        self.has_flag("ht")
    }

    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|has| has == flag)
    }

    pub fn len(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }

    /// The address of the file's first byte, if all of the file were mapped like this.
    pub fn image_base(&self) -> u64 {
        self.addresses.start - self.offset
    }
}

pub fn read(pid: u32) -> Vec<Vma> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process is alive and ours");
    let mut vmas: Vec<Vma> = Vec::new();
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(key) = first.strip_suffix(':') {
            let vma = vmas.last_mut().expect("fields follow a mapping");
            let rest = line[first.len()..].trim();
            if key == "VmFlags" {
                vma.flags = rest.split_whitespace().map(str::to_owned).collect();
            } else if let Some(kib) = rest.strip_suffix(" kB") {
                vma.sizes.insert(
                    key.to_owned(),
                    kib.trim().parse::<u64>().expect("a number") * 1024,
                );
            }
            continue;
        }
        // start-end perms offset dev inode path
        let mut fields = line.split_ascii_whitespace();
        let mut next = || fields.next().expect("a field");
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        let (start, end) = next().split_once('-').expect("a range");
        let (perms, offset, _dev, inode) = (next().to_owned(), hex(next()), next(), next());
        vmas.push(Vma {
            addresses: hex(start)..hex(end),
            perms,
            offset,
            inode: inode.parse().expect("a number"),
            path: fields.collect::<Vec<_>>().join(" "),
            sizes: HashMap::new(),
            flags: Vec::new(),
        });
    }
    vmas
}

/// A size in `/proc/PID/status`.
pub fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is alive");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line
        .expect("a field")
        .trim_matches([':', '\t', ' ', 'k', 'B']);
    kib.parse::<u64>().expect("a number") * 1024
}

/// The mappings of a file.
pub fn of_file<'a>(vmas: &'a [Vma], path: &Path) -> Vec<&'a Vma> {
    let path = fs::canonicalize(path).expect("the file exists");
    vmas.iter()
        .filter(|vma| Path::new(&vma.path) == path)
        .collect()
}

/// Bytes of huge pages behind the mappings of a kind of memory (`weights`, `kv`), of all sizes.
pub fn hugetlb_bytes_of(pid: u32, kind: &str) -> u64 {
    let name = format!("/memfd:llama-{kind} (deleted)");
    let vmas = read(pid);
    let of_kind = vmas.iter().filter(|vma| vma.path == name);
    of_kind
        .map(|vma| vma.size("Shared_Hugetlb") + vma.size("Private_Hugetlb"))
        .sum()
}

/// `HugetlbPages:` in `/proc/PID/status`, in bytes; 0 for an ended process.
pub fn hugetlb_bytes(pid: u32) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return 0;
    };
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("HugetlbPages:"));
    line.map_or(0, |line| {
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number")
            * 1024
    })
}

/// Whether a process's memory at an address equals `bytes` of a file.
pub fn same_bytes(pid: u32, address: u64, file: &File, bytes: Range<u64>) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the process is ours");
    let (mut theirs, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = bytes.start;
    while at < bytes.end {
        let n = usize::try_from((bytes.end - at).min(1 << 20)).expect("at most 1 MiB");
        file.read_exact_at(&mut expected[..n], at)
            .expect("the file is whole");
        // Unmapped memory does not equal the file.
        if memory
            .read_exact_at(&mut theirs[..n], address + (at - bytes.start))
            .is_err()
            || theirs[..n] != expected[..n]
        {
            return false;
        }
        at += n as u64;
    }
    true
}
