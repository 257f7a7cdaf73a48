//! `hugepages plan`: the huge pages that a model needs.

mod arguments;
mod command;
mod containers;
mod json;
mod text;

pub use arguments::Args;
pub use command::run;
