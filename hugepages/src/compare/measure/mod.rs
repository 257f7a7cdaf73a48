//! What is measured: one run of a server, and the ratio of two sides. Starts no process except fio.
//!
//! ```text
//! sample.rs    all numbers of one run           measures.rs  the table of measures, with their sources
//! watch.rs     memory while the server loads    footprint.rs memory after the load
//! answers.rs   answers that must be equal       speed.rs     tokens a second
//! disk.rs      the speed of the disk            ratio.rs     B / A with its interval
//! machine.rs   the machine
//! ```

pub mod answers;
mod disk;
pub mod footprint;
mod machine;
mod measures;
mod ratio;
mod sample;
pub mod speed;
pub mod watch;

pub use answers::Difference;
pub use disk::DirectRead;
pub use footprint::Footprint;
pub use machine::Machine;
pub use measures::{MEASURES, Measure};
pub use ratio::Ratio;
pub use sample::{Load, Sample};
pub use speed::{Parallel, Speed};
pub use watch::Moment;
