//! `hugepages pool`: changes the huge page pools, and undoes these changes.

mod args;
mod change;
mod lease;
mod persist;

use args::{AmountOrAll, Release, Reserve, Restore, Which};
pub use args::{Args, changer, hint, reap, run};
