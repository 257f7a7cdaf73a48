//! The huge pages that a model needs with given arguments, before a load.
//!
//! The server computes the plan with the code that loads models: it reads the headers, places each tensor, and ends before it
//! takes the first page. So the plan matches a load.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::kernel::HugePageSize;

/// Exit code of a `llama-server` that has too few huge pages or too little memory.
pub const SHORT: i32 = 3;

/// The huge pages that a load would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// First file of the model.
    pub model: PathBuf,
    /// `--hugepage-size`: `auto`, `thp`, `2M`, …
    pub size: String,
    /// Whether enough pages are usable now: pool, nodes and cgroups.
    pub fits: bool,
    /// The server's message about missing pages; empty if none is missing.
    pub message: String,
    /// The server's hint.
    pub hint: String,
    /// One need for each kind, file and page size.
    pub needs: Vec<Need>,
}

/// The need of one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Need {
    /// `weights`, `repacked`, `kv`, `compute`.
    pub kind: String,
    /// Index of the mapped file, from 0; `None` for a buffer.
    pub file: Option<usize>,
    /// Page size in bytes; 0 for buffers that are smaller than one page and stay on ordinary memory.
    pub page_size: u64,
    /// Number of pages.
    pub pages: u64,
    /// Bytes of tensors.
    pub bytes: u64,
}

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
    #[error("`{}` printed no plan: it may be a llama-server of another version", program.display())]
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
        let output = Command::new(server)
            .args(args)
            .arg("--hugepage-plan")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| PlanError::Start {
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

    /// Pages of each size.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use hugepages::plan::Plan;
    ///
    /// let plan = Plan::ask(Path::new("target/release/llama-server"), ["-m", "model.gguf", "-c", "8192"])?;
    /// for (size, pages) in plan.pages() {
    ///     println!("{pages} pages of {size}");
    /// }
    /// # Ok::<(), hugepages::plan::PlanError>(())
    /// ```
    pub fn pages(&self) -> BTreeMap<HugePageSize, u64> {
        let mut pages = BTreeMap::new();
        for need in &self.needs {
            if let Some(size) = HugePageSize::new(need.page_size).filter(|_| self.size != "thp") {
                *pages.entry(size).or_default() += need.pages;
            }
        }
        pages
    }

    /// Bytes of all these pages.
    pub fn page_bytes(&self) -> u64 {
        let bytes = |(size, pages): (HugePageSize, u64)| size.bytes() * pages;
        self.pages().into_iter().map(bytes).sum()
    }

    /// Bytes of all tensors that the CPU reads.
    pub fn bytes(&self) -> u64 {
        self.needs.iter().map(|need| need.bytes).sum()
    }
}

/// The cause and the hint in a server's log. A line that only reports a failed load is no cause.
pub(crate) fn cause_and_hint(log: &str) -> Option<(String, Option<String>)> {
    const MARKS: [&str; 4] = [
        "error while handling argument ",
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

    fn plan(needs: &[(&str, u64, u64)]) -> Plan {
        Plan {
            model: "m.gguf".into(),
            size: "auto".into(),
            fits: true,
            message: String::new(),
            hint: String::new(),
            needs: needs
                .iter()
                .map(|(kind, page_size, pages)| Need {
                    kind: (*kind).to_owned(),
                    file: None,
                    page_size: *page_size,
                    pages: *pages,
                    bytes: 1,
                })
                .collect(),
        }
    }

    #[test]
    fn pages_are_summed_by_size_and_what_takes_none_is_left_out() {
        let plan = plan(&[
            ("weights", 2 << 20, 3),
            ("kv", 2 << 20, 4),
            ("kv", 1 << 30, 1),
            ("weights", 0, 0),
        ]);
        let sizes: Vec<_> = plan
            .pages()
            .into_iter()
            .map(|(size, pages)| (size.to_string(), pages))
            .collect();
        assert_eq!(sizes, [("2 MiB".to_owned(), 7), ("1 GiB".to_owned(), 1)]);
    }

    #[test]
    fn thp_takes_no_page_of_a_pool() {
        let plan = Plan {
            size: "thp".into(),
            ..plan(&[("weights", 2 << 20, 3)])
        };
        assert!(plan.pages().is_empty());
    }

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
