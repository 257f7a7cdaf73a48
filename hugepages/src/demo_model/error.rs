//! Errors of a demo model.

use std::io;
use std::path::PathBuf;

use llama_hugepages::gguf::{GgufError, TensorType};

use super::Arch;
use super::arch::{MAX_EXPERTS, MAX_LAYERS};
use crate::size::ByteSize;

/// Why a model was not written. [`Error::hint`] names the remedy if the user has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(
        "size {asked} is too small for this architecture and weight type: the minimum is about {smallest}"
    )]
    TooSmall { asked: ByteSize, smallest: ByteSize },
    #[error("size {asked} is too large: the maximum is about {largest}")]
    TooLarge { asked: ByteSize, largest: ByteSize },
    #[error("cannot generate weights of type {0}")]
    WeightType(TensorType),
    #[error("{arch} needs a number of experts", arch = .0.name())]
    NeedsExperts(Arch),
    #[error("{arch} has no experts", arch = .0.name())]
    TakesNoExperts(Arch),
    #[error("invalid number of experts: {used} used of {count}; expected 2 to {max} experts, and 1 to all of them used", max = MAX_EXPERTS)]
    Experts { count: u32, used: u32 },
    #[error("invalid number of layers: {0}; expected 1 to {max}", max = MAX_LAYERS)]
    Layers(u64),
    #[error("{arch} has no output layer to tie, because it is an encoder", arch = .0.name())]
    CannotTie(Arch),
    #[error("context of {0} tokens is out of range: expected 8 to 16777216")]
    Context(u32),
    #[error("too many shards: {shards} for {tensors} tensors")]
    Shards { shards: u16, tensors: usize },
    #[error("`{}` exists", .0.display())]
    Exists(PathBuf),
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("another process is writing `{}`", .0.display())]
    Busy(PathBuf),
    #[error("too little space in `{dir}`: {need} needed, {free} free", dir = .dir.display())]
    NoSpace {
        dir: PathBuf,
        need: ByteSize,
        free: ByteSize,
    },
    #[error("cannot {what} `{path}`", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the header")]
    Header(#[from] GgufError),
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooSmall { smallest, .. } => {
                Some(format!("use --size {smallest} or more, or fewer experts"))
            }
            Self::Exists(_) => Some("--force replaces it".into()),
            Self::NoSpace { .. } => Some("use a smaller --size or another directory".into()),
            Self::NeedsExperts(_) => Some("add --experts 8 --experts-used 2".into()),
            Self::TakesNoExperts(_) => {
                Some("use --arch llama or --arch qwen3moe for experts".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("create the directory first".into())
            }
            _ => None,
        }
    }
}
