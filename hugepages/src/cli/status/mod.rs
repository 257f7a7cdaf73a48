//! `hugepages status`: the state of all huge pages of this machine.

mod command;
mod tables;
mod watch;

pub use command::{Args, run};
