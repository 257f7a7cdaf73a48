//! Errors of changes to a pool.

use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::{HugePageSize, User};
use crate::size::ByteSize;

/// Why a change to a pool failed. [`PoolError::hint`] names the remedy if the user has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum PoolError {
    #[error("this kernel has no pool of {size} pages")]
    NoPool { size: HugePageSize },
    #[error("this kernel has no pool of huge pages")]
    NoPools,
    #[error("node {node} has no pool of this page size")]
    NoNode { node: u32 },
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("state directory `{}` is unsafe: it is a link, or other users can change it", .0.display())]
    UnsafeState(PathBuf),
    #[error("cannot parse line {line} of the journal `{}`", path.display())]
    Journal { path: PathBuf, line: usize },
    #[error(
        "adding {added} pages takes {need} of memory, but only {available} is available and {keep} must stay free"
    )]
    Memory {
        added: u64,
        need: ByteSize,
        available: ByteSize,
        keep: ByteSize,
    },
    #[error(
        "cannot add {wanted} pages of {size}: the kernel allocated only {got}, which were returned"
    )]
    Short {
        size: HugePageSize,
        wanted: u64,
        got: u64,
        usable: u64,
    },
    #[error(
        "cannot return {wanted} pages of {size}: only {idle} are idle{}",
        in_use_by(users)
    )]
    InUse {
        size: HugePageSize,
        wanted: u64,
        idle: u64,
        users: Vec<User>,
    },
    #[error("cannot return {wanted} pages of {size}: this tool added only {ours}")]
    NotOurs {
        size: HugePageSize,
        wanted: u64,
        ours: u64,
    },
    #[error("cannot undo all changes: {0}")]
    Remains(String),
    #[error("`{}` was edited by hand", .0.display())]
    Edited(PathBuf),
    #[error("this kernel has no HVO: `{}` does not exist", .0.display())]
    NoHvo(PathBuf),
}

impl PoolError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether the only cause is too little memory or too few pages.
    pub fn is_short(&self) -> bool {
        matches!(
            self,
            Self::Memory { .. } | Self::Short { .. } | Self::InUse { .. } | Self::NotOurs { .. }
        )
    }

    /// The hint for the user. `command` is the command that failed, without `sudo`.
    pub fn hint(&self, command: &str) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("sudo {command}"))
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Some(
                "run this command on the host: a container cannot change the pool".to_owned(),
            ),
            Self::UnsafeState(_) => Some(
                "use a directory with mode 0755 (not a link) that belongs to the user of this command, because the journal in it decides which changes are undone"
                    .to_owned(),
            ),
            Self::Edited(_) => Some("--force replaces or removes the file".to_owned()),
            Self::Journal { path, .. } => Some(format!(
                "check the file; if you no longer need its undo records, remove it: rm {}",
                path.display()
            )),
            Self::Memory { .. } => {
                Some("--force adds the pages, but the machine can then run out of memory".to_owned())
            }
            Self::Short { got, .. } => Some(format!(
                "--try-hard compacts memory and tries again; --at-least {got} accepts {got} pages"
            )),
            Self::InUse { idle, .. } if *idle > 0 => {
                Some(format!("end the processes that use them, or release {idle} pages"))
            }
            Self::InUse { users, .. } if users.is_empty() => Some(
                "no process uses them; images of a store may hold them: hugepages store list"
                    .to_owned(),
            ),
            Self::InUse { .. } => Some("end the processes that use them first".to_owned()),
            Self::NotOurs { .. } => {
                Some("--force also returns idle pages that others added".to_owned())
            }
            _ => None,
        }
    }
}

/// `; in use by a (pid 1, 2 MiB), b (pid 2, 4 MiB)`
fn in_use_by(users: &[User]) -> String {
    if users.is_empty() {
        return String::new();
    }
    let one = |user: &User| {
        let bytes = ByteSize::new(user.bytes);
        format!("{} (pid {}, {bytes})", user.name, user.pid)
    };
    let names: Vec<_> = users.iter().map(one).collect();
    format!("; in use by {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Fields;

    #[test]
    fn processes_with_huge_pages_are_named() {
        assert_eq!(in_use_by(&[]), "");
        let status = "Name:\tllama-server\nHugetlbPages:\t    4096 kB\n";
        let user = User::parse(7, &Fields::new(status.to_owned()));
        assert_eq!(
            in_use_by(&[user.unwrap()]),
            "; in use by llama-server (pid 7, 4 MiB)"
        );
    }
}
