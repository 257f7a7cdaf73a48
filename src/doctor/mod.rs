//! Everything that makes huge pages fail or disappoint on this machine, one check each.
//!
//! A check reads; nothing is changed, and no page of a pool is taken.

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

use crate::plan::{Plan, PlanError};
use crate::pool::Root;
use crate::status::servers::argument;
use crate::status::{Asking, Status};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// It works, and less well than it could.
    Warning,
    /// `--hugepages` fails as things are.
    Problem,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The check. It stays the same over versions.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What is so.
    pub found: String,
    /// What that means. Empty where it needs no words.
    pub meaning: String,
    /// The one command that helps.
    pub command: Option<String>,
}

impl Finding {
    fn new(severity: Severity, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            // Set by whoever runs the check.
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
    /// Of what.
    pub of: &'static str,
    /// What to expect.
    pub expect: String,
}

/// All findings, and what they come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Whether `--hugepages` can work as things are: no finding is a problem.
    pub usable: bool,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
    /// What to expect from huge pages here, and what not.
    pub verdict: Vec<Expectation>,
}

/// What the checks look at.
struct Host {
    root: Root,
    status: Status,
    /// The model that the server would load.
    model: Option<PathBuf>,
    /// Bytes of huge pages that it would need, where that is known.
    need: Option<u64>,
    /// Of the server, as a shell takes them.
    arguments: String,
    /// What the plan says is missing, and its hint.
    short: Option<(String, String)>,
    /// Why llama-server would not load it.
    refused: Option<String>,
    /// Whether the model file is mapped already with one entry for 2 MiB: the verdict depends on it.
    mapped: Option<model::Mapped>,
}

/// A check returns nothing where there is nothing to say on this machine.
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

/// Runs all checks. `arguments` are those of `llama-server`; they may be empty. `plan` is what it plans with them.
///
/// ```no_run
/// use llama_hugepages::doctor::examine;
/// use llama_hugepages::pool::Root;
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
