//! Errors of operations on a store.

use std::io;
use std::path::{Path, PathBuf};

use super::{Process, Reason};
use crate::kernel::HugePageSize;

/// Why an operation on a store failed. [`StoreError::hint`] names the remedy if the user has one.
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
    #[error("no image, file or model `{wanted}` in store `{}`", store.display())]
    NoSuchImage { store: PathBuf, wanted: String },
    #[error("ambiguous name `{wanted}`: {}", list(models))]
    Ambiguous { wanted: String, models: Vec<String> },
    #[error("`{name}` is in use{}", used_by(by))]
    InUse { name: String, by: Vec<Process> },
    #[error("cannot drop `{name}`: {said}")]
    Drop { name: String, said: Reason },
    #[error("cannot verify `{name}`: {said}")]
    Verify { name: String, said: Reason },
    #[error("checksum mismatch in `{name}`: {said}")]
    Differs { name: String, said: Reason },
    #[error("cancelled")]
    Cancelled,
    #[error("cannot run `{}`", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("llama-server cannot load the model: {said}")]
    Load { said: Reason },
    #[error("too few huge pages: {said}")]
    LoadShort { said: Reason },
    #[error(
        "`{name}` needs {pages} pages of {size}, but only {usable} are usable{}",
        limit(*room)
    )]
    FileShort {
        name: String,
        pages: u64,
        size: HugePageSize,
        usable: u64,
        /// Pages up to the limit of the mount.
        room: Option<u64>,
    },
    #[error("`{name}` is already in the store")]
    FileExists { name: String },
    #[error("another process is copying `{name}`")]
    FileBusy { name: String },
    #[error("invalid file name `{name}`: a model in a store must end with .gguf")]
    FileName { name: String },
    #[error(
        "cannot free {wanted} pages of {size}: {free} are free, and the images that may be removed have too few"
    )]
    StillShort {
        size: HugePageSize,
        wanted: u64,
        free: u64,
    },
    #[error("`{}` is already a hugetlbfs with {theirs}, not {ours}", path.display())]
    MountedOtherwise {
        path: PathBuf,
        theirs: String,
        ours: String,
    },
    #[error("another file system is mounted at `{}`: {what}", path.display())]
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
    #[error("cannot unmount `{}`: it holds {}", path.display(), list(names))]
    Holds {
        path: PathBuf,
        names: Vec<String>,
        /// Whether `--force` drops all of them.
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

    /// Whether the only cause is too few pages.
    pub fn is_short(&self) -> bool {
        match self {
            Self::LoadShort { .. } | Self::FileShort { .. } | Self::StillShort { .. } => true,
            // The option min_size reserves pages.
            Self::Mount { source, .. } => source.raw_os_error() == Some(libc::ENOMEM),
            _ => false,
        }
    }

    /// The hint for the user. `command` is the command that failed, without `sudo`.
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
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::EFBIG) => {
                Some("ulimit -f unlimited".to_owned())
            }
            Self::NoSuchImage { .. } => {
                Some("`hugepages store list` lists all names".to_owned())
            }
            Self::Ambiguous { .. } => Some("give one of these names in full".to_owned()),
            Self::InUse { .. } => Some(
                "end these processes, or use --force to remove the name now; the pages return to the pool when the last process ends"
                    .to_owned(),
            ),
            Self::Differs { .. } => {
                Some("remove this image with `hugepages store drop`; the next start of a server reads the model, or computes the prompt, again".to_owned())
            }
            Self::FileShort {
                room: Some(room),
                pages,
                ..
            } if room < pages => Some(
                "drop a model, or mount the store again with a larger --limit"
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
                "remove the old copy with `hugepages store drop {name}`"
            )),
            Self::StillShort { .. } => Some(
                "end processes that use images, or add pages with `hugepages pool reserve`".to_owned(),
            ),
            Self::MountedOtherwise { .. } => {
                Some("run `hugepages store unmount` first, or use the options of the existing mount".to_owned())
            }
            Self::MountPoint { .. } => {
                Some("use an empty directory, or a path that does not exist".to_owned())
            }
            Self::Mount { source, size, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
                Some(format!(
                    "--min needs free pages of {size}; add pages to the pool with `hugepages pool reserve`"
                ))
            }
            Self::Mount { source, size, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
                Some(format!(
                    "check with `hugepages status` whether this kernel has pages of {size}"
                ))
            }
            Self::Holds { ours: true, .. } => {
                Some("--force drops these models; an attached process keeps its memory until it ends".to_owned())
            }
            Self::Holds { ours: false, .. } => {
                Some("remove these files first: they belong to other programs".to_owned())
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
        return " by a process that is not visible from here".to_owned();
    }
    let one = |process: &Process| format!("{} (pid {})", process.name, process.pid);
    let names: Vec<_> = by.iter().map(one).collect();
    format!(" by {}", names.join(", "))
}

fn limit(room: Option<u64>) -> String {
    match room {
        Some(room) => format!("; the limit of the mount allows {room}"),
        None => String::new(),
    }
}
