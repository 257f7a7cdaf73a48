//! What the user sees while a model is served.

use super::Address;
use crate::kernel::HugePageSize;

/// The view of the user.
pub trait Progress: Send + Sync {
    /// A load of so many bytes begins.
    fn begin(&self, bytes: u64);

    /// Whether the load is shown. Then the server's log comes through [`Progress::log`], so that the two do not mix.
    fn is_shown(&self) -> bool;

    /// So many bytes are loaded.
    fn loaded(&self, bytes: u64);

    /// A line of the server's log, with its end.
    fn log(&self, line: &[u8]);

    /// The load has ended.
    fn end(&self);

    /// Something that the user wants to know.
    fn tell(&self, event: &Event<'_>);
}

/// Something that the user wants to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server answers.
    Ready(&'a Address),
    /// Another process took the added pages before the server reserved them.
    PagesTaken,
    /// Some pages stay missing, so the rest of the model uses ordinary memory.
    Short {
        /// Page size.
        size: HugePageSize,
        /// Needed pages.
        pages: u64,
        /// Usable pages.
        usable: u64,
        /// Reason.
        why: Missing,
    },
}

/// Why pages stay missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The kernel found no more pages.
    Fragmented,
    /// Too little memory for so many pages, in MiB.
    Memory {
        /// Available memory.
        available: u64,
        /// Memory of the added pages.
        needed: u64,
        /// Memory that must stay free.
        keep: u64,
    },
    /// No right to change the pool.
    NoRight,
}
