//! Processes with huge pages, from `/proc/*/status`.

use crate::kernel::{Fields, Root};

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
        let ids = super::ids(root).unwrap_or_default().into_iter();
        let mut users: Vec<_> = ids.filter_map(|pid| Self::of(root, pid)).collect();
        users.sort_by_key(|user| (std::cmp::Reverse(user.bytes), user.pid));
        users
    }

    /// One process. `None` if it has no huge pages, or has ended.
    pub fn of(root: &Root, pid: u32) -> Option<Self> {
        Self::parse(pid, &super::status(root, pid).ok()?)
    }

    pub(crate) fn parse(pid: u32, status: &Fields) -> Option<Self> {
        let bytes = status.bytes("HugetlbPages").filter(|bytes| *bytes > 0)?;
        Some(Self {
            pid,
            name: status.word("Name").unwrap_or("?").to_owned(),
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
        let parse = |status: &str| User::parse(7, &Fields::new(status.to_owned()));
        let user = parse(status).unwrap();
        assert_eq!((&*user.name, user.bytes), ("llama-server", 4 << 20));
        assert_eq!(parse("Name:\tx\nHugetlbPages:\t 0 kB\n"), None);
    }
}
