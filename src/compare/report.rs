//! All of a comparison, as JSON has it.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;

use serde::Serialize;

use super::{
    Bound, CaseResult, DirectRead, Machine, Many, ModelFile, Perplexity, Pressure, Program, bounds,
    markdown, plot,
};
use crate::pool::Root;
use crate::status::{Hvo, hvo, pools};

/// What was compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// For people.
    pub name: String,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Of all files.
    pub bytes: u64,
}

impl Model {
    /// From its files.
    pub fn new(name: &str, files: &ModelFile) -> Self {
        Self {
            name: name.to_owned(),
            files: files.paths().to_vec(),
            bytes: files.bytes(),
        }
    }
}

/// A case that could not be run here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub case: String,
    /// With which model.
    pub model: String,
    /// Why.
    pub reason: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// A case in which something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its name.
    pub case: String,
    /// With which model.
    pub model: String,
    /// What went wrong.
    pub reason: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Whether the two did not say the same.
    pub unequal: bool,
}

/// One pool, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Of a page.
    pub page_bytes: u64,
    /// `nr_hugepages`
    pub total: u64,
    /// `free_hugepages`
    pub free: u64,
    /// Computed: what HVO gives back for each page that joins the pool while it is on.
    pub hvo_bytes_of_a_page: u64,
}

impl Pool {
    /// All of them, as they are now.
    pub fn all() -> Vec<Self> {
        let pools = pools::read(&Root::system()).into_iter();
        let pool = |pool: pools::PoolState| Self {
            page_bytes: pool.page_size.bytes(),
            total: pool.total,
            free: pool.free,
            hvo_bytes_of_a_page: pool.page_size.hvo_bytes(),
        };
        pools.map(pool).collect()
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How this was started.
    pub commands: Vec<String>,
    /// Variables that all servers got from the user and that may change what they do.
    pub environment: BTreeMap<String, String>,
    /// What was compared: the baseline, and ours.
    pub programs: Vec<Program>,
    /// With what.
    pub models: Vec<Model>,
    /// Before the first case.
    pub pools_before: Vec<Pool>,
    /// While the pages of a case were there, the most of it.
    pub hvo: Option<Hvo>,
    /// A over B.
    pub cases: Vec<CaseResult>,
    /// Perplexities, all of them equal.
    pub perplexity: Vec<Perplexity>,
    /// Too little memory.
    pub pressure: Vec<Pressure>,
    /// Some servers on one model.
    pub servers: Vec<Many>,
    /// What could not be run here.
    pub left_out: Vec<LeftOut>,
    /// What went wrong.
    pub failed: Vec<Failed>,
    /// After the last case.
    pub pools_after: Vec<Pool>,
    /// What was counted, and the most that it may be.
    pub bounds: Vec<Bound>,
}

impl Report {
    /// Of nothing yet.
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

    /// Looks at what the pools give back now, and keeps the most.
    pub fn note_hvo(&mut self) {
        let root = Root::system();
        let now = hvo::read(&root, &pools::read(&root));
        let more = |before: &Hvo| now.possible_bytes > before.possible_bytes;
        if self.hvo.as_ref().is_none_or(more) {
            self.hvo = Some(now);
        }
    }

    /// When nothing follows.
    pub fn finish(&mut self) {
        self.pools_after = Pool::all();
        self.bounds = bounds::of(self);
    }

    /// Bounds that were not kept.
    pub fn broken(&self) -> impl Iterator<Item = &Bound> {
        self.bounds.iter().filter(|bound| !bound.holds())
    }

    /// Whether nothing at all was compared.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
            && self.perplexity.is_empty()
            && self.pressure.is_empty()
            && self.servers.is_empty()
    }

    /// What fio read, of all cases.
    pub fn direct_reads(&self) -> impl Iterator<Item = &DirectRead> {
        self.cases.iter().flat_map(|result| &result.direct_reads)
    }

    /// For people, with tables.
    pub fn markdown(&self) -> String {
        markdown::markdown(self)
    }

    /// For people, as a picture. `None` where nothing can be drawn.
    pub fn svg(&self) -> Option<String> {
        plot::svg(self)
    }
}

/// Of OpenMP, ggml and the C library. `LLAMA_ARG_*` is taken away from the servers.
fn environment() -> BTreeMap<String, String> {
    const PREFIXES: [&str; 6] = ["OMP_", "GOMP_", "KMP_", "GGML_", "GLIBC_", "MALLOC_"];
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}
