//! The list of checks, and a run of all checks.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Serialize;

use super::host::Host;
use super::verdict::verdict;
use super::{Expectation, Finding, Severity};
use super::{kernel, limits, machine, memory, model, mounts, numa, pool};
use crate::kernel::Root;
use crate::plan::{Plan, PlanError};
use crate::server_arguments::value;
use crate::status::servers::argument;
use crate::status::{Asking, Status};

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
    ("numa", numa::placement),
    ("numa-policy", numa::policy),
    ("numa-balancing", memory::numa_balancing),
    ("swap", memory::swap),
    ("pressure", memory::pressure),
    ("governor", machine::governor),
    ("virtual-machine", machine::virtual_machine),
    ("mounts", mounts::mounts),
    ("model-file", model::file),
    ("model-direct-io", model::direct_io),
    ("model-mapping", model::mapping),
    ("model-repack", model::repacking),
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
    arguments: &[OsString],
    plan: Option<Result<Plan, PlanError>>,
) -> Diagnosis {
    let model = argument(arguments, &["-m", "--model"])
        .or_else(|| std::env::var_os("LLAMA_ARG_MODEL"))
        .map(PathBuf::from);
    let host = Host {
        root: root.clone(),
        status: Status::read(root, Asking::Never),
        need: plan
            .as_ref()
            .and_then(|plan| plan.as_ref().ok())
            .map(Plan::page_bytes),
        repacked: plan
            .as_ref()
            .and_then(|plan| plan.as_ref().ok())
            .map_or(0, Plan::repacked_bytes),
        short: plan
            .as_ref()
            .and_then(|plan| plan.as_ref().ok())
            .filter(|plan| !plan.fits)
            .map(|plan| (plan.message.clone(), plan.hint.clone())),
        numa: value(arguments, "--numa", "LLAMA_ARG_NUMA"),
        arguments: shell_words::join(arguments.iter().map(|it| it.to_string_lossy())),
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
        verdict: verdict(&host, &findings),
        findings,
    }
}
