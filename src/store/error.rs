//! Why something with a store did not happen.

use std::io;
use std::path::{Path, PathBuf};

use super::{Process, Reason};
use crate::pool::HugePageSize;

/// Why something with a store did not happen. [`StoreError::hint`] says what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum StoreError {
    #[error("cannot use `{wanted}` as a store: {said}")]
    NoStore { wanted: String, said: Reason },
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("nothing in `{}` is called `{wanted}`, and no model of that name is there", store.display())]
    NoSuchImage { store: PathBuf, wanted: String },
    #[error("`{wanted}` may mean {}", list(models))]
    Ambiguous { wanted: String, models: Vec<String> },
    #[error("`{name}` is in use{}", used_by(by))]
    InUse { name: String, by: Vec<Process> },
    #[error("cannot drop `{name}`: {said}")]
    Drop { name: String, said: Reason },
    #[error("cannot verify `{name}`: {said}")]
    Verify { name: String, said: Reason },
    #[error("`{name}` differs from its checksums: {said}")]
    Differs { name: String, said: Reason },
    #[error("cancelled")]
    Cancelled,
    #[error("cannot run `{}`", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("llama-server cannot load this: {said}")]
    Load { said: Reason },
    #[error("too few huge pages: {said}")]
    LoadShort { said: Reason },
    #[error(
        "`{name}` needs {pages} pages of {size}, {usable} can be had{}",
        limit(*room)
    )]
    FileShort {
        name: String,
        pages: u64,
        size: HugePageSize,
        usable: u64,
        /// Pages that the mount's own limit leaves.
        room: Option<u64>,
    },
    #[error("`{name}` is in the store already")]
    FileExists { name: String },
    #[error("another process copies `{name}` now")]
    FileBusy { name: String },
    #[error("`{name}` is no name for a model file in a store: it has to end with .gguf")]
    FileName { name: String },
    #[error("{free} pages of {size} are free, and what may be dropped does not make it {wanted}")]
    StillShort {
        size: HugePageSize,
        wanted: u64,
        free: u64,
    },
    #[error("`{}` is hugetlbfs already, with {theirs} and not with {ours}", path.display())]
    MountedOtherwise {
        path: PathBuf,
        theirs: String,
        ours: String,
    },
    #[error("something else is mounted at `{}`: {what}", path.display())]
    OtherMount { path: PathBuf, what: String },
    #[error("no hugetlbfs is mounted at `{}`", path.display())]
    NotMounted { path: PathBuf },
    #[error("`{}` {why}", path.display())]
    MountPoint { path: PathBuf, why: &'static str },
    #[error("cannot mount hugetlbfs at `{}`", path.display())]
    Mount {
        path: PathBuf,
        size: HugePageSize,
        source: io::Error,
    },
    #[error("`{}` holds {}", path.display(), list(names))]
    Holds {
        path: PathBuf,
        names: Vec<String>,
        /// Whether all of it may be dropped with force.
        ours: bool,
    },
}

impl StoreError {
    pub(super) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// Whether the machine has too few pages, and nothing is wrong otherwise.
    pub fn is_short(&self) -> bool {
        match self {
            Self::LoadShort { .. } | Self::FileShort { .. } | Self::StillShort { .. } => true,
            // min_size takes pages.
            Self::Mount { source, .. } => source.raw_os_error() == Some(libc::ENOMEM),
            _ => false,
        }
    }

    /// What the user can do about it. `command` is what was run, without the rights that it needs.
    pub fn hint(&self, command: &str) -> Option<String> {
        match self {
            Self::NoStore { said, .. }
            | Self::Drop { said, .. }
            | Self::Verify { said, .. }
            | Self::Load { said }
            | Self::LoadShort { said } => said.hint.clone(),
            Self::Io { source, .. } | Self::Mount { source, .. }
                if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) =>
            {
                Some(format!("sudo {command}"))
            }
            Self::NoSuchImage { .. } => {
                Some("`hugepages store list` says what is there".to_owned())
            }
            Self::Ambiguous { .. } => Some("name one of them in full".to_owned()),
            Self::InUse { .. } => Some(
                "--force takes the name away; who uses it keeps the memory until it ends"
                    .to_owned(),
            ),
            Self::Differs { .. } => {
                Some("`hugepages store drop` it: the next start reads the model again".to_owned())
            }
            Self::FileShort {
                room: Some(room),
                pages,
                ..
            } if room < pages => Some(
                "the limit is an option of the mount: drop something, or mount it with more"
                    .to_owned(),
            ),
            Self::FileShort {
                pages,
                usable,
                size,
                ..
            } => Some(format!(
                "sudo hugepages pool reserve {} --size {}",
                pages.saturating_sub(*usable),
                size.short_name()
            )),
            Self::FileExists { name } => Some(format!(
                "`hugepages store drop {name}` makes room for another one"
            )),
            Self::StillShort { .. } => Some(
                "end what uses the images, or add pages with `hugepages pool reserve`".to_owned(),
            ),
            Self::MountedOtherwise { .. } => {
                Some("`hugepages store unmount` it first, or ask for what it has".to_owned())
            }
            Self::MountPoint { .. } => {
                Some("choose an empty folder, or one that is not there yet".to_owned())
            }
            Self::Mount { source, size, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
                Some(format!(
                    "--min takes pages of {size} at once: `hugepages pool reserve` adds them"
                ))
            }
            Self::Mount { source, size, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
                Some(format!(
                    "`hugepages status` says whether this kernel has pages of {size}"
                ))
            }
            Self::Holds { ours: true, .. } => {
                Some("--force drops them; who uses one keeps the memory until it ends".to_owned())
            }
            Self::Holds { ours: false, .. } => {
                Some("these are not of this tool: remove them first".to_owned())
            }
            _ => None,
        }
    }
}

fn list(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn used_by(by: &[Process]) -> String {
    if by.is_empty() {
        return ", by a process that cannot be seen from here".to_owned();
    }
    let one = |process: &Process| format!("{} (pid {})", process.name, process.pid);
    let names: Vec<_> = by.iter().map(one).collect();
    format!(" by {}", names.join(", "))
}

fn limit(room: Option<u64>) -> String {
    match room {
        Some(room) => format!(", and the limit of the mount leaves {room}"),
        None => String::new(),
    }
}
