//! The commands of `hugepages`: one file or folder for each, for its arguments and its output.
//!
//! `command_line.rs` lists the commands, `exit.rs` the exit codes, and `errors.rs` prints an error with its hint. A command may use another
//! one: `serve`, `store` and `compare` use `pool`. The commands decide nothing about pages; the parts in the library of this crate do.

mod command_line;
mod compare;
mod demo_model;
mod doctor;
mod errors;
mod events;
mod exec;
mod exit;
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

pub use command_line::run;
pub use errors::report;
pub use exit::Exit;
