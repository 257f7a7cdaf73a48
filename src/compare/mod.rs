//! The comparison with stock llama.cpp: whole processes, in turn, on the same model.
//!
//! A [`Case`] has two sides, A (the baseline) and B. Both are started in the order A B B A after one run each that does not
//! count, and everything that could explain a difference is noted beside the times. No run knows of another's result.
//!
//! ```text
//! Row ──▶ Case ──Runner──▶ Sample, Sample, …  ──Ratio──▶ B / A with its interval ──▶ Report ──▶ JSON, Markdown, SVG
//!                                └── Measure: what is read off a sample, and where it comes from
//! ```
//!
//! ```text
//! cases.rs     the cases, as a table          server.rs    one process, from its start to its end
//! runner.rs    the order of the runs          watch.rs     its memory while it loads
//! measures.rs  what is compared               footprint.rs its memory when it has loaded
//! stats.rs     ratios and intervals           speech.rs    what both have to say
//! bounds.rs    what can be counted            speed.rs     tokens a second
//! pressure.rs  too little memory              many.rs      some servers, one model
//! report.rs    all of it; markdown.rs and plot.rs for people
//! ```
//!
//! Lives here: starting, measuring, statistics. Not here: the pool and the terminal, which `hugepages compare` sees to.

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

/// What the page cache holds of the model when a process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing: dropped, and counted to be so.
    Cold,
    /// All of it: read once.
    Warm,
}

/// One of the two that are compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Side {
    /// For people: `stock`, `hugepages`.
    pub name: String,
    /// A `llama-server`.
    pub program: PathBuf,
    /// The first file of the model.
    pub model: PathBuf,
    /// Further arguments.
    pub args: Vec<String>,
}
