//! The input of the checks.

use std::path::PathBuf;

use crate::kernel::Root;
use crate::status::Status;

/// Input of the checks.
pub struct Host {
    pub root: Root,
    pub status: Status,
    /// Model in the arguments.
    pub model: Option<PathBuf>,
    /// Bytes of huge pages that the model needs, if known.
    pub need: Option<u64>,
    /// Bytes of weights that the server repacks.
    pub repacked: u64,
    /// Arguments of the server, quoted for a shell.
    pub arguments: String,
    /// `--numa` of the server.
    pub numa: Option<String>,
    /// Message of the plan about missing pages, and its hint.
    pub short: Option<(String, String)>,
    /// Why llama-server refuses the arguments.
    pub refused: Option<String>,
    /// How the page cache maps the model file; the verdict depends on it.
    pub mapped: Option<Mapped>,
}

/// Page cache under a mapped part of the model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Bytes mapped and touched.
    pub bytes: u64,
    /// Bytes of these that are mapped with one entry for each 2 MiB.
    pub whole: u64,
}
