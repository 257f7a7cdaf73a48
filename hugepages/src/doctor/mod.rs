//! Checks for everything that makes huge pages fail or disappoint on this machine.
//!
//! A check changes nothing. Only the check `probe` takes a page of a pool, and returns it at once.

mod examine;
mod finding;
mod host;
mod kernel;
mod limits;
mod machine;
mod memory;
mod model;
mod mounts;
mod numa;
mod pool;
mod verdict;

pub use examine::{Diagnosis, examine};
pub use finding::{Finding, Severity};
pub use verdict::Expectation;
