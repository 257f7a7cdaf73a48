//! The comparison with stock llama.cpp: whole processes, in turn, on the same model.
//!
//! A [`Case`] has two sides, A (the baseline) and B. They run in the order A B B A, after one run of each that does not count.
//! Besides times, each run records everything that can explain a difference. No run depends on the result of another run.
//!
//! ```text
//! Row ──▶ Case ──Runner──▶ Sample, Sample, …  ──Ratio──▶ B / A with its interval ──▶ Report ──▶ JSON, Markdown, SVG
//!                                └── Measure: a value of a sample, and its source
//! ```
//!
//! ```text
//! cases.rs     the cases, as a table          server.rs    one process, from its start to its end
//! runner.rs    the order of the runs          watch.rs     its memory while it loads
//! measures.rs  measures and their sources     footprint.rs its memory after the load
//! stats.rs     ratios and intervals           speech.rs    answers that must be equal
//! bounds.rs    bounds for counts              speed.rs     tokens a second
//! pressure.rs  too little memory              many.rs      several servers, one model
//! report.rs    the report; markdown.rs and plot.rs print it
//! ```
//!
//! Lives here: starting, measuring, statistics. Not here: the pool and the terminal, which are in the command.

mod bounds;
mod cases;
mod cgroup;
mod disk;
mod error;
mod footprint;
mod guardian;
mod machine;
mod many;
mod markdown;
mod measures;
mod model_file;
mod perplexity;
mod plot;
mod pressure;
mod program;
mod report;
mod runner;
mod sample;
mod scratch;
mod server;
mod speech;
mod speed;
mod stats;
mod store;
mod watch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use bounds::Bound;
pub use cases::{CASES, Pages, Programs, Recipe, Row, Which};
pub use disk::DirectRead;
pub use error::{Cancelled, CompareError};
pub use footprint::Footprint;
pub use machine::Machine;
pub use many::{Many, ManySide};
pub use markdown::{rows, said};
pub use measures::{MEASURES, Measure};
pub use model_file::ModelFile;
pub use perplexity::{Perplexity, perplexity_arguments};
pub use pressure::{Pressed, Pressure, PressureSide};
pub use program::Program;
pub use report::{Failed, LeftOut, Model, Pool, Report};
pub use runner::{Case, CaseResult, Runner};
pub use sample::{Load, Sample};
pub use scratch::Scratch;
pub use speech::Difference;
pub use speed::{Parallel, Speed};
pub use stats::Ratio;
pub use store::Store;
pub use watch::Moment;

/// State of the page cache at the start of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// The page cache holds nothing of the model, checked with mincore.
    Cold,
    /// The page cache holds the whole model, read once.
    Warm,
}

/// One side of a case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Side {
    /// Name in the report: `stock`, `hugepages`.
    pub name: String,
    /// A `llama-server`.
    pub program: PathBuf,
    /// The first file of the model.
    pub model: PathBuf,
    /// More arguments.
    pub args: Vec<String>,
}
