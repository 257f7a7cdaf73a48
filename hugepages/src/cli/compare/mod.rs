//! `hugepages compare`: the arguments, the order of the cases, and the output.
//! Not here: measuring, which is `hugepages::compare`.

mod arguments;
mod command;
mod conversations;
mod models;
mod pages;
mod print;
mod session;

pub use arguments::Args;
pub use command::run;
