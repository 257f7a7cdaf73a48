//! Changes of the huge page pools.
//!
//! [`LockedPools`] changes a pool, with a journal that can undo every change.

mod amount;
mod counter;
mod error;
mod journal;
mod locked_pools;
pub mod persist;
mod state_directory;

pub use amount::{Amount, ParseAmountError};
pub use counter::{Counter, Counts};
pub use error::PoolError;
pub use journal::Holder;
pub use locked_pools::{LockedPools, Reserved, Undone, Wish, enough_memory};
pub use state_directory::{Lock, State};
