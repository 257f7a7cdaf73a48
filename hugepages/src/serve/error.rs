//! Why a model cannot be served.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::plan::PlanError;
use crate::pool::lease::LeaseError;

/// Why a model cannot be served. [`ServeError::hint`] names the remedy if the user has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ServeError {
    #[error("`{}` is missing", .0.display())]
    NoProgram(PathBuf),
    #[error("no program to run")]
    NoProgramName,
    #[error("cannot find the program `{}`", .0.display())]
    NotFound(OsString),
    #[error("cannot read the program `{}`", .program.display())]
    Unreadable {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` {why}")]
    NoPreload { program: String, why: &'static str },
    #[error("the preload library `{}` is missing", .0.display())]
    NoLibrary(PathBuf),
    #[error("the path of the preload library, `{}`, has a space or a colon, which LD_PRELOAD takes as a separator", .0.display())]
    LibraryPath(PathBuf),
    #[error("the arguments name no model")]
    NoModel,
    #[error("the arguments switch huge pages off: --no-hugepages")]
    SwitchedOff,
    #[error("{address} is in use")]
    AddressInUse { address: String, port: u16 },
    #[error("cannot run `getent passwd`")]
    NoUsers(#[source] io::Error),
    #[error("cannot install a signal handler")]
    NoSignals(#[source] io::Error),
    #[error("cannot run `{program}`")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the server")]
    Wait(#[source] io::Error),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl ServeError {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram(_) => Some("pass the path of llama-server with --server".to_owned()),
            Self::NoLibrary(_) => Some("pass the path of the library with --library".to_owned()),
            Self::LibraryPath(_) => Some(
                "copy the library to another folder, and pass its path with --library".to_owned(),
            ),
            Self::NoPreload { .. } => {
                Some("serve the model with: hugepages serve -m model.gguf".to_owned())
            }
            Self::NoModel => Some("hugepages serve -m model.gguf".to_owned()),
            Self::SwitchedOff => {
                Some("start llama-server itself, or leave this option out".to_owned())
            }
            Self::AddressInUse { port, .. } => Some(format!(
                "choose another port: --port {}",
                port.wrapping_add(1)
            )),
            Self::Plan(error) => error.hint().map(str::to_owned),
            _ => None,
        }
    }
}
