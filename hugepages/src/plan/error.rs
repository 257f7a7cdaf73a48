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
            Self::Refused { said, hint } => hint.as_deref().or_else(|| hint_for_workers(said)),
            _ => None,
        }
    }
}

/// The hint for an error of the argument `--rpc`.
fn hint_for_workers(said: &str) -> Option<&'static str> {
    const HINTS: [(&str, &str); 4] = [
        (
            "RPC not supported in this build",
            "build llama-server with `cargo build --release --features rpc`, or name another one with --server",
        ),
        (
            "is not HOST:PORT",
            "use --rpc HOST:PORT,HOST:PORT with the address of each worker",
        ),
        (
            "cannot connect to the RPC server",
            "start ggml-rpc-server on this address, or correct --rpc",
        ),
        (
            "accepts no client",
            "if another server uses this worker, stop that server first",
        ),
    ];
    let of = HINTS.iter().find(|(error, _)| said.contains(error));
    of.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_worker_has_a_hint_and_other_errors_have_none() {
        let of = |said: &str| PlanError::Refused {
            said: said.to_owned(),
            hint: None,
        };
        let refused = of("\"--rpc\": RPC not supported in this build");
        assert!(refused.hint().unwrap().contains("--features rpc"));
        let refused = of("cannot connect to the RPC server a:1: Connection refused");
        assert!(refused.hint().unwrap().contains("ggml-rpc-server"));
        assert_eq!(of("failed to load model").hint(), None);
    }
}
