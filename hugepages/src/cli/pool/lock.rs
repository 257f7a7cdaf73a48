//! The lock of the pools, with messages for the user who waits.

use hugepages::kernel::Root;
use hugepages::pool::{LockedPools, PoolError, State};

use super::undone::say_reaped;

/// Returns pages that a killed command left in the pool. Otherwise the next reservation would return them, and a caller that
/// compares the pool before and after its work would see a smaller pool.
pub fn reap(root: &Root) {
    let reaped = lock_pools(root).and_then(|mut pools| pools.reap());
    // No error, because a user who cannot change the pool can still use its free pages.
    say_reaped(&reaped.unwrap_or_default());
}

/// Opens the journal and takes the lock. Prints a message if it must wait for the lock.
pub fn lock_pools(root: &Root) -> Result<LockedPools, PoolError> {
    let waiting = || eprintln!("waiting for the lock: another command is changing the pool");
    LockedPools::open(root, &State::open(root)?, waiting)
}
