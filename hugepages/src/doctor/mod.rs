//! Checks for everything that makes huge pages fail or disappoint on this machine.
//!
//! A check changes nothing. Only the check `probe` takes a page of a pool, and returns it at once.

mod host;
mod kernel;
mod limits;
mod memory;
mod model;
mod mounts;
mod pool;
mod verdict;

use std::path::PathBuf;

use serde::Serialize;

use crate::kernel::Root;
use crate::plan::{Plan, PlanError};
use crate::status::servers::argument;
use crate::status::{Asking, Status};

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As expected.
    Ok,
    /// Information.
    Note,
    /// `--hugepages` works, but worse than possible.
    Warning,
    /// `--hugepages` fails now.
    Problem,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Name of the check, stable over versions.
    pub id: &'static str,
    /// Severity.
    pub severity: Severity,
    /// The finding.
    pub found: String,
    /// Its meaning; may be empty.
    pub meaning: String,
    /// The command that helps.
    pub command: Option<String>,
}

impl Finding {
    fn new(severity: Severity, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            // Set by `examine`.
            id: "",
            severity,
            found: found.into(),
            meaning: meaning.into(),
            command: None,
        }
    }

    fn ok(found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, found, "")
    }

    fn note(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Note, found, meaning)
    }

    fn warning(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Warning, found, meaning)
    }

    fn problem(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Problem, found, meaning)
    }

    fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }
}

/// One line of the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Expectation {
    /// Subject.
    pub of: &'static str,
    /// Expectation.
    pub expect: String,
}

/// All findings, and the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Whether `--hugepages` can work now: no finding is a problem.
    pub usable: bool,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
    /// Expected effects of huge pages on this machine.
    pub verdict: Vec<Expectation>,
}

/// Input of the checks.
struct Host {
    root: Root,
    status: Status,
    /// Model in the arguments.
    model: Option<PathBuf>,
    /// Bytes of huge pages that the model needs, if known.
    need: Option<u64>,
    /// Arguments of the server, quoted for a shell.
    arguments: String,
    /// Message of the plan about missing pages, and its hint.
    short: Option<(String, String)>,
    /// Why llama-server refuses the arguments.
    refused: Option<String>,
    /// How the page cache maps the model file; the verdict depends on it.
    mapped: Option<model::Mapped>,
}

/// A check that does not apply to this machine returns no finding.
type Check = fn(&Host) -> Vec<Finding>;

const CHECKS: &[(&str, Check)] = &[
    ("kernel-version", kernel::version),
    ("hugetlbfs", kernel::hugetlbfs),
    ("kernel-config", kernel::config),
    ("cpu", kernel::cpu),
    ("plan", pool::plan),
    ("pool", pool::pool),
    ("probe", pool::probe),
    ("fragmentation", pool::fragmentation),
    ("hvo", pool::hvo),
    ("cgroup-hugetlb", limits::cgroup),
    ("cgroup-memory", limits::memory),
    ("rlimits", limits::rlimits),
    ("max-map-count", limits::max_map_count),
    ("thp", memory::thp),
    ("numa-balancing", memory::numa_balancing),
    ("swap", memory::swap),
    ("pressure", memory::pressure),
    ("governor", host::governor),
    ("virtual-machine", host::virtual_machine),
    ("mounts", mounts::mounts),
    ("model-file", model::file),
    ("model-direct-io", model::direct_io),
    ("model-mapping", model::mapping),
];

/// Runs all checks. `arguments` are the arguments of `llama-server`, or empty. `plan` is the plan for these arguments.
///
/// ```no_run
/// use hugepages::doctor::examine;
/// use hugepages::kernel::Root;
///
/// let diagnosis = examine(&Root::system(), &["-m".into(), "model.gguf".into()], None);
/// for finding in &diagnosis.findings {
///     println!("{}: {}", finding.id, finding.found);
/// }
/// ```
pub fn examine(
    root: &Root,
    arguments: &[String],
    plan: Option<Result<Plan, PlanError>>,
) -> Diagnosis {
    let model = argument(arguments, &["-m", "--model"])
        .or_else(|| std::env::var("LLAMA_ARG_MODEL").ok())
        .map(PathBuf::from);
    let host = Host {
        root: root.clone(),
        status: Status::read(root, Asking::Never),
        need: plan
            .as_ref()
            .and_then(|plan| plan.as_ref().ok())
            .map(Plan::page_bytes),
        short: plan
            .as_ref()
            .and_then(|plan| plan.as_ref().ok())
            .filter(|plan| !plan.fits)
            .map(|plan| (plan.message.clone(), plan.hint.clone())),
        arguments: shell_words::join(arguments),
        refused: plan.and_then(Result::err).map(|error| error.to_string()),
        mapped: model.as_deref().and_then(model::mapped),
        model,
    };
    let mut findings = Vec::new();
    for (id, check) in CHECKS {
        let found = check(&host).into_iter();
        findings.extend(found.map(|finding| Finding { id, ..finding }));
    }
    let usable = findings
        .iter()
        .all(|finding| finding.severity < Severity::Problem);
    Diagnosis {
        usable,
        verdict: verdict::verdict(&host, &findings),
        findings,
    }
}
