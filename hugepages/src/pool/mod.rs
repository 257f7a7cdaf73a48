//! Changes of the huge page pools.
//!
//! [`Changer`] changes a pool, with a journal that can undo every change.

mod amount;
mod change;
mod change_error;
mod counter;
mod journal;
pub mod persist;
mod state;

pub use amount::{Amount, ParseAmountError};
pub use change::{Changer, Reserved, Undone, Wish, enough_memory};
pub use change_error::ChangeError;
pub use counter::{Counter, Counts};
pub use journal::Holder;
pub use state::{Lock, State};
