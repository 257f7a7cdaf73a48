//! The commands of `hugepages`: one file or folder for each.

mod command_line;
mod compare;
mod demo_model;
mod doctor;
mod lease;
mod man;
mod output;
mod overview;
mod plan;
mod pool;
mod programs;
mod serve;
mod signals;
mod status;
mod store;
mod tlb;

pub use command_line::{Exit, report, run};
