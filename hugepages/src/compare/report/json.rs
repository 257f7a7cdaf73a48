//! The report of a comparison, the source of its JSON.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;

use serde::Serialize;

use crate::compare::measure::{DirectRead, Machine};
use crate::compare::run::{
    CaseResult, Many, ModelFile, Perplexity, Pressure, Program, Restart, Switch, Traffic,
};
use crate::kernel::Root;
use crate::kernel::{Hvo, hvo, pools};

/// A model of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Name in the report.
    pub name: String,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Size of all files.
    pub bytes: u64,
}

impl Model {
    /// Describes a model by its files.
    pub fn new(name: &str, files: &ModelFile) -> Self {
        Self {
            name: name.to_owned(),
            files: files.paths().to_vec(),
            bytes: files.bytes(),
        }
    }
}

/// A skipped case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Name of the case.
    pub case: String,
    /// Name of the model.
    pub model: String,
    /// Reason.
    pub reason: String,
    /// The hint for the user.
    pub hint: Option<String>,
}

/// A failed case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Name of the case.
    pub case: String,
    /// Name of the model.
    pub model: String,
    /// Reason.
    pub reason: String,
    /// The hint for the user.
    pub hint: Option<String>,
    /// Whether the two sides gave different results.
    pub unequal: bool,
}

/// One pool, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Page size.
    pub page_bytes: u64,
    /// `nr_hugepages`
    pub total: u64,
    /// `free_hugepages`
    pub free: u64,
    /// Computed: bytes that HVO frees for each added page.
    pub hvo_bytes_of_a_page: u64,
}

impl Pool {
    /// Reads all pools.
    pub fn all() -> Vec<Self> {
        let pools = pools::read(&Root::system()).into_iter();
        let pool = |pool: pools::PoolState| Self {
            page_bytes: pool.page_size.bytes(),
            total: pool.total,
            free: pool.free,
            hvo_bytes_of_a_page: hvo::saved_bytes(pool.page_size),
        };
        pools.map(pool).collect()
    }
}

/// A count and its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Name, such as `cold: in the page cache, MiB`.
    pub what: String,
    /// The worst count.
    pub value: f64,
    /// The limit.
    pub limit: f64,
    /// Reason for the limit.
    pub why: String,
}

impl Bound {
    /// Whether the count is within its limit.
    pub fn holds(&self) -> bool {
        self.value <= self.limit
    }
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Command lines of this comparison.
    pub commands: Vec<String>,
    /// Variables of the user's environment that all servers inherit and that can change their results.
    pub environment: BTreeMap<String, String>,
    /// Both programs, the baseline first.
    pub programs: Vec<Program>,
    /// The models.
    pub models: Vec<Model>,
    /// Pools before the first case.
    pub pools_before: Vec<Pool>,
    /// HVO with the pages of a case, at its maximum.
    pub hvo: Option<Hvo>,
    /// Results of the cases.
    pub cases: Vec<CaseResult>,
    /// Equal perplexities.
    pub perplexity: Vec<Perplexity>,
    /// Results of the case `pressure`.
    pub pressure: Vec<Pressure>,
    /// Results of the case `servers`.
    pub servers: Vec<Many>,
    /// Results of the cases `restart` and `sleep`.
    pub restarts: Vec<Restart>,
    /// Result of the case `switch`, which uses all models.
    pub switch: Option<Switch>,
    /// Result of the case `traffic`, which uses all models.
    pub traffic: Option<Traffic>,
    /// Skipped cases.
    pub left_out: Vec<LeftOut>,
    /// Failed cases.
    pub failed: Vec<Failed>,
    /// Pools after the last case.
    pub pools_after: Vec<Pool>,
    /// Counts and their limits.
    pub bounds: Vec<Bound>,
}

impl Report {
    /// A report without results.
    pub fn new(machine: Machine, commands: Vec<String>, programs: Vec<Program>) -> Self {
        Self {
            machine,
            commands,
            environment: environment(),
            programs,
            models: Vec::new(),
            pools_before: Pool::all(),
            hvo: None,
            cases: Vec::new(),
            perplexity: Vec::new(),
            pressure: Vec::new(),
            servers: Vec::new(),
            restarts: Vec::new(),
            switch: None,
            traffic: None,
            left_out: Vec::new(),
            failed: Vec::new(),
            pools_after: Vec::new(),
            bounds: Vec::new(),
        }
    }

    /// Size of a model in bytes.
    pub fn model_bytes(&self, name: &str) -> u64 {
        let model = self.models.iter().find(|model| model.name == name);
        model.map_or(0, |model| model.bytes)
    }

    /// Reads the memory that HVO frees now, and keeps the maximum.
    pub fn note_hvo(&mut self) {
        let root = Root::system();
        let now = hvo::read(&root, &pools::read(&root));
        let more = |before: &Hvo| now.possible_bytes > before.possible_bytes;
        if self.hvo.as_ref().is_none_or(more) {
            self.hvo = Some(now);
        }
    }

    /// Counts out of their bounds.
    pub fn broken(&self) -> impl Iterator<Item = &Bound> {
        self.bounds.iter().filter(|bound| !bound.holds())
    }

    /// Whether no case ran.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
            && self.perplexity.is_empty()
            && self.pressure.is_empty()
            && self.servers.is_empty()
            && self.restarts.is_empty()
            && self.switch.is_none()
            && self.traffic.is_none()
    }

    /// Read speeds of fio in all cases.
    pub fn direct_reads(&self) -> impl Iterator<Item = &DirectRead> {
        self.cases.iter().flat_map(|result| &result.direct_reads)
    }
}

/// Variables of OpenMP, ggml and the C library. The servers do not inherit `LLAMA_ARG_*`.
fn environment() -> BTreeMap<String, String> {
    const PREFIXES: [&str; 6] = ["OMP_", "GOMP_", "KMP_", "GGML_", "GLIBC_", "MALLOC_"];
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}
