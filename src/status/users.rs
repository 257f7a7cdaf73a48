//! Processes with huge pages, and their bytes of each page size.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use super::Unread;
use super::servers::{self, Asking, Server};
use crate::kernel_files;
use crate::pool::{self, HugePageSize, Root};

/// A process with huge pages.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct User {
    /// Process id.
    pub pid: u32,
    /// Name, cut by the kernel to 15 bytes.
    pub name: String,
    /// `HugetlbPages`: all sizes, shared pages included.
    pub bytes: u64,
    /// Bytes of each page size. Absent if this user may not read its memory map.
    pub shares: Option<Vec<Share>>,
    /// Model and address, if it is a `llama-server`.
    pub server: Option<Server>,
}

/// Pages of one size that a process mapped and touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// Page size.
    #[serde(serialize_with = "super::bytes_of_page")]
    pub page_size: HugePageSize,
    /// Bytes that only this process maps.
    pub private_bytes: u64,
    /// Bytes that other processes may map too.
    pub shared_bytes: u64,
}

/// All processes with huge pages, largest first, without processes that end meanwhile.
pub fn read(root: &Root, asking: Asking, unread: &mut Vec<Unread>) -> Vec<User> {
    let entries = match fs::read_dir(root.path("/proc")) {
        Ok(entries) => entries,
        Err(error) => {
            unread.push(Unread {
                what: "processes".to_owned(),
                why: error.to_string(),
            });
            return Vec::new();
        }
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut users: Vec<User> = pids
        .filter_map(|pid| user(root, pid, asking, unread))
        .collect();
    users.sort_by_key(|user| (std::cmp::Reverse(user.bytes), user.pid));
    users
}

fn user(root: &Root, pid: u32, asking: Asking, unread: &mut Vec<Unread>) -> Option<User> {
    let pool::User { name, bytes, .. } = pool::User::of(root, pid)?;
    let shares = match fs::read_to_string(root.path(format!("/proc/{pid}/smaps"))) {
        Ok(smaps) => Some(shares(&smaps)),
        // The process ended between two reads.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return None,
        Err(error) => {
            unread.push(Unread {
                what: format!("page sizes of process {pid} ({name})"),
                why: error.to_string(),
            });
            None
        }
    };
    Some(User {
        pid,
        name,
        bytes,
        shares,
        server: servers::read(root, pid, asking),
    })
}

fn shares(smaps: &str) -> Vec<Share> {
    let mut sums: BTreeMap<HugePageSize, (u64, u64)> = BTreeMap::new();
    let mut size = None;
    for line in smaps.lines() {
        let value = |name| kernel_files::kib_field(line, name);
        if let Some(bytes) = value("KernelPageSize") {
            size = HugePageSize::new(bytes);
        } else if let (Some(size), Some(bytes)) = (size, value("Shared_Hugetlb")) {
            sums.entry(size).or_default().1 += bytes;
        } else if let (Some(size), Some(bytes)) = (size, value("Private_Hugetlb")) {
            sums.entry(size).or_default().0 += bytes;
        }
    }
    let used = sums
        .into_iter()
        .filter(|(_, (private, shared))| private + shared > 0);
    used.map(|(page_size, (private_bytes, shared_bytes))| Share {
        page_size,
        private_bytes,
        shared_bytes,
    })
    .collect()
}
