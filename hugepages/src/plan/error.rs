//! Why a plan fails.

use std::io;
use std::path::PathBuf;

/// Why the plan failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The program does not exist, or this user has no right to run it.
    #[error("cannot run `{}`", program.display())]
    Start {
        /// The server.
        program: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The server refused the arguments or the model.
    #[error("llama-server cannot compute the plan: {said}")]
    Refused {
        /// The error lines of the server.
        said: String,
        /// The hint of the server.
        hint: Option<String>,
    },
    /// The program is not a server of this version.
    #[error("`{}` printed no plan: these arguments load no model, or it is a llama-server of another version", program.display())]
    NoPlan {
        /// The server.
        program: PathBuf,
    },
}

impl PlanError {
    /// The hint for the user.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}
