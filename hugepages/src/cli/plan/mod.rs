//! `hugepages plan`: the huge pages that a model needs.

mod answer;

pub use answer::{Args, run};
