//! Why a comparison cannot go on.

use std::io;
use std::path::PathBuf;

use super::Difference;

/// The user does not want to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

/// Why a comparison cannot go on. Nothing is left running.
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
        /// What the server says can be done.
        hint: Option<String>,
    },
    #[error("`{name}` was ready and ended while it answered ({status}): {said}")]
    Crashed {
        name: String,
        status: String,
        said: String,
    },
    #[error("`{name}` was not ready after {seconds} s")]
    Hung { name: String, seconds: u64 },
    #[error("`{name}` was ready and did not answer: {reason}")]
    NoAnswer { name: String, reason: String },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{bytes} bytes of `{}` stay in the page cache: another process maps it", path.display())]
    StaysCached { path: PathBuf, bytes: u64 },
    #[error("the page cache keeps {bytes} of {size} bytes of `{}`: there is no memory for a warm start", path.display())]
    NotCached {
        path: PathBuf,
        bytes: u64,
        size: u64,
    },
    #[error("`{a}` and `{b}` do not give the same tokens: {difference}")]
    Unequal {
        a: String,
        b: String,
        difference: Box<Difference>,
    },
    #[error("`{a}` and `{b}` do not give the same perplexity: `{said_a}` and `{said_b}`")]
    UnequalPerplexity {
        a: String,
        b: String,
        said_a: String,
        said_b: String,
    },
    #[error("cannot limit memory")]
    NoCgroup { source: io::Error },
    #[error("cannot mount a place for resident images")]
    NoStore { source: io::Error },
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
            Self::Hung { .. } => "--patience SECONDS, where it only needs longer",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether two programs that should say the same did not.
    pub fn is_unequal(&self) -> bool {
        matches!(self, Self::Unequal { .. } | Self::UnequalPerplexity { .. })
    }

    /// Whether this says something about the machine and nothing about the servers: the case is left out.
    pub fn is_of_the_machine(&self) -> bool {
        matches!(
            self,
            Self::NoCgroup { .. } | Self::NoStore { .. } | Self::NotCached { .. }
        )
    }
}
