//! `/proc/PID/maps`: the files that a process maps.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use rustix::fs::{major, minor};

use crate::kernel::Root;

/// The inodes of a device that a process has mapped, each once.
///
/// # Errors
/// The process has ended, or this user may not read its map.
pub fn inodes(root: &Root, pid: u32, device: u64) -> io::Result<Vec<u64>> {
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
}
