//! `hugepages exec`: runs a program under the preload library.
//! Lives here: the arguments, the report and the exit code. Not here: the order of the steps, which is in `hugepages::serve`.

mod arguments;
mod command;

pub use arguments::Args;
pub use command::run;
