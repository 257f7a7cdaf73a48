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
//! run/      what runs: the cases, the order A B B A, the servers, and the machine around them
//! measure/  what is measured: one run, its counters and its speed, and the ratio of two sides
//! report/   what is shown: JSON, Markdown, SVG, and bounds for counts
//! ```
//!
//! Imports point one way: `report` → `run` → `measure`. Lives here: starting, measuring, statistics. Not here: the pool and the
//! terminal, which are in the command.

mod measure;
mod report;
mod run;

pub use measure::{
    Difference, DirectRead, Footprint, Load, MEASURES, Machine, Measure, Moment, Parallel, Ratio,
    Sample, Speed,
};
pub use report::{Bound, Failed, LeftOut, Model, Pool, Report, rows, said};
pub use run::{
    CASES, Cache, Cancelled, Case, CaseResult, CompareError, Many, ManySide, Message, ModelFile,
    PERCENTILES, Pages, Pause, Percentile, Perplexity, Pressed, Pressure, PressureSide, Program,
    Programs, RESTART, Recipe, Restart, RestartSide, Restarted, Resume, RoutedModel, Row, Runner,
    SLEEP, SWITCH, SWITCH_MEASURES, Scratch, Side, Store, Switch, SwitchMeasure, SwitchTalk,
    Switched, Traffic, Which, context_size, link_models, perplexity_arguments,
};
