//! The comparison with stock llama.cpp: whole processes, in turn, on the same model.
//!
//! A [`Case`] has two sides, A (the baseline) and B. Both are started in the order A B B A after one run each that does not
//! count, and everything that could explain a difference is noted beside the times. No run knows of another's result.
//!
//! ```text
//! Case ──Runner──▶ Sample, Sample, …  ──Ratio──▶ B / A with its interval ──▶ Report
//! ```
//!
//! Lives here: starting, measuring, statistics. Not here: printing, which `hugepages compare` does.

mod disk;
mod machine;
mod model_file;
mod runner;
mod server;
mod stats;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use disk::DirectRead;
pub use machine::Machine;
pub use model_file::ModelFile;
pub use runner::{Cancelled, Case, CaseResult, Runner};
pub use server::{Load, Sample};
pub use stats::Ratio;

/// What the page cache holds of the model when a process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing: dropped, and counted to be so.
    Cold,
    /// All of it: read once.
    Warm,
}

/// One of the two that are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// For people: `stock`, `hugepages`.
    pub name: String,
    /// A `llama-server`.
    pub program: PathBuf,
    /// The first file of the model.
    pub model: PathBuf,
    /// Further arguments.
    pub args: Vec<String>,
}

/// Why a comparison cannot go on. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CompareError {
    #[error("cannot run `{}`", program.display())]
    Start {
        program: PathBuf,
        source: std::io::Error,
    },
    #[error("`{name}` ended before it was ready ({status}): {said}")]
    Ended {
        name: String,
        status: String,
        said: String,
        /// What the server says can be done.
        hint: Option<String>,
    },
    #[error("`{name}` was not ready after {seconds} s")]
    Hung { name: String, seconds: u64 },
    #[error("`{name}` was ready and did not answer: {reason}")]
    NoAnswer { name: String, reason: String },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} bytes of `{}` stay in the page cache: another process maps it", bytes, path.display())]
    StaysCached { path: PathBuf, bytes: u64 },
    #[error("the page cache keeps {bytes} of {size} bytes of `{}`: there is no memory for a warm start", path.display())]
    NotCached {
        path: PathBuf,
        bytes: u64,
        size: u64,
    },
    #[error("`{a}` and `{b}` do not give the same tokens: `{said_a}` and `{said_b}`")]
    Unequal {
        a: String,
        b: String,
        said_a: String,
        said_b: String,
    },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl CompareError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Ended { hint, .. } => return hint.clone(),
            Self::StaysCached { .. } => "end the servers that have this model loaded",
            Self::NotCached { .. } => {
                "a smaller model, or fewer huge pages in the pool while this runs"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
