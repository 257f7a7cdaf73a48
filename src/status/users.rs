//! Who has huge pages: processes, with their bytes of each size.

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
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel keeps it: at most 15 bytes.
    pub name: String,
    /// `HugetlbPages`: all sizes, shared pages included.
    pub bytes: u64,
    /// The same by page size. Absent where its memory map may not be read.
    pub shares: Option<Vec<Share>>,
    /// What it serves, if it is a `llama-server`.
    pub server: Option<Server>,
}

/// Pages of one size that a process has mapped and touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// Their size.
    #[serde(serialize_with = "super::bytes_of_page")]
    pub page_size: HugePageSize,
    /// Only this process has them.
    pub private_bytes: u64,
    /// Others may have them too.
    pub shared_bytes: u64,
}

/// All of them, the largest first. A process that ends meanwhile is left out.
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
        // Gone between two reads.
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
