//! `hugepages serve`: serves a model on huge pages.
//! Lives here: the arguments, the progress bar and the exit code. Not here: the order of the steps, which is in `hugepages::serve`.

mod arguments;
mod command;
mod progress_bar;

pub use arguments::Args;
pub use command::run;
