//! Why a pool was not changed.

use std::io;
use std::path::{Path, PathBuf};

use super::{HugePageSize, User};
use crate::size::ByteSize;

/// Why a pool was not changed. [`ChangeError::hint`] says what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ChangeError {
    #[error("this kernel has no pool of {size} pages")]
    NoPool { size: HugePageSize },
    #[error("this kernel has no pool of huge pages")]
    NoPools,
    #[error("there is no node {node} with such pages")]
    NoNode { node: u32 },
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is not a folder that only its owner can change", .0.display())]
    UnsafeState(PathBuf),
    #[error("line {line} of `{}` cannot be read", path.display())]
    Journal { path: PathBuf, line: usize },
    #[error(
        "{added} pages would need {need}, {available} are available and {keep} of them have to stay so"
    )]
    Memory {
        added: u64,
        need: ByteSize,
        available: ByteSize,
        keep: ByteSize,
    },
    #[error("cannot add {wanted} pages of {size}: the kernel gave {got}, which were taken back")]
    Short {
        size: HugePageSize,
        wanted: u64,
        got: u64,
        usable: u64,
    },
    #[error(
        "{wanted} pages of {size} cannot be given back: {idle} are idle{}",
        User::list(users)
    )]
    InUse {
        size: HugePageSize,
        wanted: u64,
        idle: u64,
        users: Vec<User>,
    },
    #[error("{wanted} pages of {size} cannot be given back: {ours} were added with this tool")]
    NotOurs {
        size: HugePageSize,
        wanted: u64,
        ours: u64,
    },
    #[error("could not undo everything: {0}")]
    Remains(String),
    #[error("`{}` was changed since it was written", .0.display())]
    Edited(PathBuf),
    #[error("this kernel cannot free the page structs of huge pages: it has no `{}`", .0.display())]
    NoHvo(PathBuf),
}

impl ChangeError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether the machine has too little of something, and nothing is wrong otherwise.
    pub fn is_short(&self) -> bool {
        matches!(
            self,
            Self::Memory { .. } | Self::Short { .. } | Self::InUse { .. } | Self::NotOurs { .. }
        )
    }

    /// What the user can do. `command` is what was run, without the rights that it needs.
    pub fn hint(&self, command: &str) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("sudo {command}"))
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Some(
                "in a container the pool is the host's: run this on the host".to_owned(),
            ),
            Self::UnsafeState(_) => Some(
                "what is written there decides what is undone: it has to be a real folder of the user who runs this, mode 0755"
                    .to_owned(),
            ),
            Self::Edited(_) => Some("--force replaces or removes it all the same".to_owned()),
            Self::Journal { path, .. } => Some(format!(
                "look at it, and remove `{}` if what it says is no longer wanted",
                path.display()
            )),
            Self::Memory { .. } => {
                Some("--force does it all the same; the machine may then run out of memory".to_owned())
            }
            Self::Short { got, .. } => Some(format!(
                "--try-hard moves memory together and tries again; --at-least {got} is content with that many"
            )),
            Self::InUse { idle, .. } if *idle > 0 => {
                Some(format!("end what uses them, or release {idle} pages"))
            }
            Self::InUse { .. } => Some("end what uses them first".to_owned()),
            Self::NotOurs { .. } => {
                Some("--force also gives back idle pages that somebody else added".to_owned())
            }
            _ => None,
        }
    }
}
