//! Processes with huge pages, from `/proc/*/status`.

use std::fs;

use super::{Root, files};

/// A process with huge pages. Files on hugetlbfs that no process maps do not appear here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct User {
    /// Process id.
    pub pid: u32,
    /// Name, cut by the kernel.
    pub name: String,
    /// `HugetlbPages:`, all page sizes together.
    pub bytes: u64,
}

impl User {
    /// All processes with huge pages, largest first. Processes of other users count too, because everybody can read their
    /// `status`.
    pub fn all(root: &Root) -> Vec<Self> {
        let entries = fs::read_dir(root.path("/proc"));
        let mut users: Vec<_> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                Self::of(root, pid)
            })
            .collect();
        users.sort_by_key(|user| (std::cmp::Reverse(user.bytes), user.pid));
        users
    }

    /// One process. `None` if it has no huge pages, or has ended.
    pub fn of(root: &Root, pid: u32) -> Option<Self> {
        let status = files::text(root, &format!("/proc/{pid}/status"))?;
        Self::parse(pid, &status)
    }

    pub(crate) fn parse(pid: u32, status: &str) -> Option<Self> {
        let bytes = files::kib_field(status, "HugetlbPages").filter(|bytes| *bytes > 0)?;
        let name = status.lines().find_map(|line| line.strip_prefix("Name:"));
        Some(Self {
            pid,
            name: name.unwrap_or("?").trim().to_owned(),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_huge_pages_is_named() {
        let status = "Name:\tllama-server\nVmRSS:\t 12 kB\nHugetlbPages:\t    4096 kB\n";
        let user = User::parse(7, status).unwrap();
        assert_eq!((&*user.name, user.bytes), ("llama-server", 4 << 20));
        assert_eq!(User::parse(7, "Name:\tx\nHugetlbPages:\t 0 kB\n"), None);
    }
}
