//! A microbenchmark of page sizes.
//!
//! The same loops run on base pages, on THP and on the pages of each pool: first touch, sequential read, random read and
//! dependent read. The memories take turns in rounds, forward and back again, and each round is compared with itself. The first
//! round does not count. The real backing of each memory comes from `/proc/self/smaps`.
//!
//! ```text
//! pages.rs    kinds of pages                    run.rs     the order of the rounds
//! memory.rs   mappings, first touch             work.rs    the loops
//! backing.rs  the real backing, from smaps      report.rs  the results; plot.rs draws them
//! counters.rs TLB misses of the hardware        room.rs    how much memory may be taken
//! ```
//!
//! The benchmark changes no pool, and takes only free pages.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use hugepages::{kernel::Root, size::ByteSize, tlb::{self, Spec}};
//!
//! let root = Root::system();
//! let spec = Spec { size: ByteSize::new(1 << 30), pages: tlb::Pages::all(&root), repeats: 5 };
//! let report = tlb::run(&root, &spec, &AtomicBool::new(false), |_| ())?;
//! for row in &report.memories {
//!     if let tlb::Outcome::Measured(measured) = &row.outcome {
//!         println!("{}: {} ns", row.pages, measured.dependent_read.summary.median);
//!     }
//! }
//! # Ok::<(), tlb::TlbError>(())
//! ```

mod backing;
mod counters;
mod error;
mod memory;
mod pages;
mod plot;
mod report;
mod room;
mod run;
mod spec;
mod stats;
mod stop;
mod work;

pub use backing::Backing;
pub use error::TlbError;
pub use pages::{Pages, Unavailable};
pub use plot::svg;
pub use report::{Counted, Measured, Metric, NotMeasured, Outcome, Report, Row, Series};
pub use run::{Step, run};
pub use spec::Spec;
pub use stats::{Better, Ratio};
pub use stop::Stopped;
