//! `hugepages serve`: adds the pages that a model lacks, runs the server, and returns the pages.
//! Lives here: the arguments and the order of the steps. Not here: changes of a pool.

mod address;
mod command;
mod invoker;
mod server;

pub use command::{Args, run};
