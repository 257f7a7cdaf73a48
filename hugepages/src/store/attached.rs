//! Processes that map files of a store.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::Root;
use crate::kernel::processes::{self, maps};

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
        for pid in processes::ids(root).unwrap_or_default() {
            match maps::inodes(root, pid, device) {
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
        let process = Process {
            pid,
            name: processes::name(root, pid),
        };
        for inode in inodes {
            let of_file = self.by_file.entry((device, inode)).or_default();
            of_file.push(process.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
