//! Changes of the huge page pools.
//!
//! [`LockedPools`] changes a pool, with a journal that can undo every change.
//!
//! ```text
//! reserve.rs    add pages          journal.rs          the log of all changes
//! release.rs    return pages       state_directory.rs  the place of the log and of the lock
//! undo.rs       undo changes       locked_pools.rs     the pools under the lock: log, write, read back
//! hvo.rs        switch on HVO      counter.rs          the kernel's numbers
//! persist.rs    pages at boot      enough_memory.rs    memory that must stay free
//! lease.rs      pages on loan
//! ```

mod amount;
mod counter;
mod enough_memory;
mod error;
mod hvo;
mod journal;
pub mod lease;
mod locked_pools;
pub mod persist;
mod release;
mod reserve;
mod state_directory;
mod undo;

pub use amount::{Amount, ParseAmountError};
pub use counter::{Counter, Counts};
pub use enough_memory::enough_memory;
pub use error::PoolError;
pub use journal::Holder;
pub use locked_pools::LockedPools;
pub use reserve::{Reserved, Wish};
pub use state_directory::{Lock, State};
pub use undo::Undone;
