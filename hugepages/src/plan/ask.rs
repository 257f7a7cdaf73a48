//! Asking `llama-server --hugepage-plan`.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Plan, PlanError};
use crate::child_process::end_with_parent;

/// Exit code of a `llama-server` that has too few huge pages or too little memory.
pub const SHORT: i32 = 3;

/// An argument for callers of [`Plan::ask`] that add the missing pages: without `-c`, the context may need more than the usable pages.
pub const GROW: &str = "--hugepage-plan-grow";

impl Plan {
    /// Asks a `llama-server`. Takes no page, and needs only the right to read the model.
    ///
    /// # Errors
    /// [`PlanError`], with the message of the server.
    pub fn ask<A: AsRef<OsStr>>(
        server: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, PlanError> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        // Last, so that they override the user's arguments: a running server may use the port.
        let address = ["--host", "127.0.0.1", "--port", "0"].map(OsString::from);
        Self::ask_program(server, args.chain(address))
    }

    /// Asks a `llama-server` that the words of `wrapper` start, for example `setpriv …`, which runs it as another user.
    ///
    /// # Errors
    /// As [`Plan::ask`].
    pub fn ask_through(
        wrapper: &[OsString],
        server: &Path,
        args: &[OsString],
    ) -> Result<Self, PlanError> {
        let Some((program, words)) = wrapper.split_first() else {
            return Self::ask(server, args);
        };
        let words = words.iter().map(OsString::as_os_str);
        let args = args.iter().map(OsString::as_os_str);
        Self::ask(
            program.as_ref(),
            words.chain([server.as_os_str()]).chain(args),
        )
    }

    /// Asks another program of the patched llama.cpp, such as `llama-perplexity`.
    ///
    /// # Errors
    /// As [`Plan::ask`].
    pub fn ask_program<A: AsRef<OsStr>>(
        server: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, PlanError> {
        let mut command = Command::new(server);
        command
            .args(args)
            .arg("--hugepage-plan")
            .stdin(Stdio::null());
        // No limit for the time, because the server may download the model first.
        end_with_parent(&mut command);
        let output = command.output().map_err(|source| PlanError::Start {
            program: server.to_owned(),
            source,
        })?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let plan = stdout
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok());
        plan.ok_or_else(|| {
            let log = String::from_utf8_lossy(&output.stderr);
            match cause_and_hint(&log) {
                Some((said, hint)) => PlanError::Refused { said, hint },
                None => PlanError::NoPlan {
                    program: server.to_owned(),
                },
            }
        })
    }
}

/// The cause and the hint in a server's log. A line that only reports a failed load is no cause.
pub(crate) fn cause_and_hint(log: &str) -> Option<(String, Option<String>)> {
    const MARKS: [&str; 5] = [
        "error while handling argument ",
        "error while handling environment variable ",
        "error loading model: ",
        "error: ",
        " E ",
    ];
    let after = |mark: &str| {
        log.lines()
            .find_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()))
    };
    let cause = MARKS.iter().find_map(|mark| after(mark))?;
    Some((cause, after("hint: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_refusal_is_told_without_what_surrounds_it() {
        let log = "0.00.002 I srv  llama_server: initializing ...\n\
            0.00.004 E llama_model_load: error loading model: llama_model_loader: failed to load model from nope.gguf\n\
            hint: cannot open 'nope.gguf': No such file or directory\n\
            0.00.005 E llama_model_load_from_file_impl: failed to load model\n";
        let (said, hint) = cause_and_hint(log).unwrap();
        assert_eq!(
            said,
            "llama_model_loader: failed to load model from nope.gguf"
        );
        assert_eq!(
            hint.as_deref(),
            Some("cannot open 'nope.gguf': No such file or directory")
        );
    }
}
