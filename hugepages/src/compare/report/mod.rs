//! What is shown: the report as JSON, Markdown and SVG, and the bounds for counts. Starts and measures nothing.

mod bounds;
mod conversations;
mod json;
mod markdown;
mod svg;
mod waiting;

pub use json::{Bound, Failed, LeftOut, Model, Pool, Report};
pub use markdown::{rows, said};
