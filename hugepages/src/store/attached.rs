//! Processes that map files of a store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};

use rustix::fs::{major, minor};
use serde::Serialize;

use crate::kernel::Root;
use crate::kernel::files;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name, cut by the kernel to 15 bytes.
    pub name: String,
}

/// All mappings of files on some devices, read once for all files.
#[derive(Debug, Default)]
pub struct Attached {
    by_file: BTreeMap<(u64, u64), Vec<Process>>,
    /// Number of processes whose map this user may not read. Any of them may map a file.
    pub unread: usize,
}

impl Attached {
    /// Searches `/proc/*/maps` for files of a device.
    pub fn read(root: &Root, device: u64) -> Self {
        let mut attached = Self::default();
        let entries = fs::read_dir(root.path("/proc")).into_iter().flatten();
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            match inodes(root, pid, device) {
                Ok(inodes) => attached.add(root, pid, device, inodes),
                // A process that ended meanwhile maps nothing.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    attached.unread += 1;
                }
                Err(_) => {}
            }
        }
        attached
    }

    /// Processes that map one file.
    pub fn to(&self, device: u64, inode: u64) -> &[Process] {
        self.by_file
            .get(&(device, inode))
            .map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, root: &Root, pid: u32, device: u64, inodes: Vec<u64>) {
        if inodes.is_empty() {
            return;
        }
        let name = files::text(root, &format!("/proc/{pid}/comm")).unwrap_or_default();
        let process = Process {
            pid,
            name: name.trim_end().to_owned(),
        };
        for inode in inodes {
            let of_file = self.by_file.entry((device, inode)).or_default();
            of_file.push(process.clone());
        }
    }
}

/// The files of a device that a process has mapped, each once.
fn inodes(root: &Root, pid: u32, device: u64) -> std::io::Result<Vec<u64>> {
    let maps = File::open(root.path(format!("/proc/{pid}/maps")))?;
    let device = format!("{:02x}:{:02x}", major(device), minor(device));
    let mut inodes = Vec::new();
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        inodes.extend(inode(&String::from_utf8_lossy(&line), &device));
    }
    inodes.sort_unstable();
    inodes.dedup();
    Ok(inodes)
}

/// proc(5): address permissions offset device inode path
fn inode(line: &str, device: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    (fields.next()? == device).then_some(())?;
    fields.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_told_by_device_and_inode() {
        let line = "7f00-7f20 r--s 00000000 00:1b 1234                /store/a b.resident";
        assert_eq!(inode(line, "00:1b"), Some(1234));
        assert_eq!(inode(line, "00:1c"), None);
        assert_eq!(inode("7f00-7f20 rw-p 00000000 00:00 0", "00:1b"), None);
        assert_eq!(inode("", "00:1b"), None);
    }

    #[test]
    fn a_process_is_found_by_what_it_maps_and_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join("proc/77");
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), "llama-server\n").unwrap();
        fs::write(
            process.join("maps"),
            "10-20 r--s 0 00:1b 5 /a\n20-30 r--s 0 00:1b 5 /a\n30-40 r--s 0 08:01 6 /b\n",
        )
        .unwrap();
        let attached = Attached::read(&Root::at(dir.path()).unwrap(), 0x1b);
        let names: Vec<_> = attached.to(0x1b, 5).iter().map(|it| it.pid).collect();
        assert_eq!(names, [77]);
        assert!(attached.to(0x1b, 6).is_empty());
    }
}
