//! The lock and the journal of the pool, with messages for the user.

use hugepages::kernel::Root;
use hugepages::pool::{ChangeError, Changer, State};

use super::undone::say_reaped;

/// Returns pages that a killed command left in the pool. Otherwise the next reservation would return them, and a caller that
/// compares the pool before and after its work would see a smaller pool.
pub fn reap(root: &Root) {
    let reaped = changer(root).and_then(|mut changer| changer.reap());
    // No error, because a user who cannot change the pool can still use its free pages.
    say_reaped(&reaped.unwrap_or_default());
}

/// Opens the journal and takes the lock. Prints a message if it must wait for the lock.
pub fn changer(root: &Root) -> Result<Changer, ChangeError> {
    let waiting = || eprintln!("waiting for the lock: another command is changing the pool");
    Changer::open(root, &State::open(root)?, waiting)
}
