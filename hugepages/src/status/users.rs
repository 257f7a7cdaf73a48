//! Processes with huge pages, and their bytes of each page size.

use serde::Serialize;

use super::servers::{self, Asking, Server};
use crate::kernel::processes::{self, smaps};
use crate::kernel::{self, Root, Share, Unread};

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

/// All processes with huge pages, largest first, without processes that end meanwhile.
pub fn read(root: &Root, asking: Asking, unread: &mut Vec<Unread>) -> Vec<User> {
    let pids = match processes::ids(root) {
        Ok(pids) => pids.into_iter(),
        Err(error) => {
            unread.push(Unread {
                what: "processes".to_owned(),
                why: error.to_string(),
            });
            return Vec::new();
        }
    };
    let mut users: Vec<User> = pids
        .filter_map(|pid| user(root, pid, asking, unread))
        .collect();
    users.sort_by_key(|user| (std::cmp::Reverse(user.bytes), user.pid));
    users
}

fn user(root: &Root, pid: u32, asking: Asking, unread: &mut Vec<Unread>) -> Option<User> {
    let kernel::User { name, bytes, .. } = kernel::User::of(root, pid)?;
    let shares = match smaps::read(root, pid) {
        Ok(text) => Some(smaps::shares(&text)),
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
