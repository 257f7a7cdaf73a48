//! Errors of a comparison.

use std::io;
use std::path::PathBuf;

use crate::compare::measure::Difference;

/// The user cancelled the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

/// Why a comparison failed. No server is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CompareError {
    #[error("cannot run `{}`", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("`{name}` ended before it was ready ({status}): {said}")]
    Ended {
        name: String,
        status: String,
        said: String,
        /// The hint of the server.
        hint: Option<String>,
    },
    #[error("`{name}` ended during an answer ({status}): {said}")]
    Crashed {
        name: String,
        status: String,
        said: String,
    },
    #[error("`{name}` was not ready after {seconds} s")]
    Hung { name: String, seconds: u64 },
    #[error("`{name}` was ready but did not answer: {reason}")]
    NoAnswer { name: String, reason: String },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot drop `{}` from the page cache: {bytes} bytes stay, because another process maps the file", path.display())]
    StaysCached { path: PathBuf, bytes: u64 },
    #[error("too little memory for a warm start: the page cache keeps only {bytes} of {size} bytes of `{}`", path.display())]
    NotCached {
        path: PathBuf,
        bytes: u64,
        size: u64,
    },
    #[error("`{a}` and `{b}` gave different tokens: {difference}")]
    Unequal {
        a: String,
        b: String,
        difference: Box<Difference>,
    },
    #[error("`{a}` and `{b}` gave different perplexities: `{said_a}` and `{said_b}`")]
    UnequalPerplexity {
        a: String,
        b: String,
        said_a: String,
        said_b: String,
    },
    #[error("cannot create a cgroup with a memory limit")]
    NoCgroup { source: io::Error },
    #[error("cannot create a store for resident images")]
    NoStore { source: io::Error },
    #[error("`{name}` keeps no context: {reason}")]
    NoContext { name: String, reason: String },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl CompareError {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Ended { hint, .. } => return hint.clone(),
            Self::StaysCached { .. } => "end the other servers of this model",
            Self::NotCached { .. } => {
                "use a smaller model, or shrink the pool during the comparison"
            }
            Self::Hung { .. } => "if the server only needs more time, raise --patience SECONDS",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the two programs gave different results.
    pub fn is_unequal(&self) -> bool {
        matches!(self, Self::Unequal { .. } | Self::UnequalPerplexity { .. })
    }

    /// Whether the cause is the machine or the model and not a server. The comparison then skips the case.
    pub fn skips_the_case(&self) -> bool {
        matches!(
            self,
            Self::NoCgroup { .. }
                | Self::NoStore { .. }
                | Self::NotCached { .. }
                | Self::NoContext { .. }
        )
    }
}
