//! `hugepages pool`: changes the huge page pools, and undoes these changes.
//! Lives here: the arguments and their meaning. Not here: the changes themselves, which are in `hugepages::pool`.

mod arguments;
mod command;
mod lease_holder;
mod lock;
mod persist;
mod print_change;
mod release;
mod reserve;
mod restore;
mod undone;
mod which_pool;

pub use command::{Args, run};
pub use lock::{lock_pools, reap};
