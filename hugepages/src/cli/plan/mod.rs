//! `hugepages plan`: the huge pages that a model needs.

mod command;
mod text;

pub use command::{Args, run};
