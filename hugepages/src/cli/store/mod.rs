//! `hugepages store`: models that stay on huge pages between processes.
//! Lives here: the arguments and their meaning. Not here: the store itself, which is `hugepages::store`.

mod command;
mod common;
mod fill;
mod list;
mod load;
mod mount;
mod pages;
mod remove;
mod verify;

pub use command::{Args, run};
pub use fill::fill;
