//! `hugepages pool`: changes the huge page pools, and undoes these changes.
//! Lives here: the arguments and their meaning. Not here: the changes themselves, which are in `hugepages::pool`.

mod args;
mod change;
mod changer;
mod command;
mod lease;
mod persist;
mod undone;
mod which;

pub use changer::{changer, reap};
pub use command::{Args, run};
