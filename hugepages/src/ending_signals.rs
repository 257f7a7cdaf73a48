//! The signals that ask this process to end.

use std::mem::MaybeUninit;
use std::ptr;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// SIGINT, SIGTERM and SIGHUP, without those that this process inherited as ignored.
pub fn ending_signals() -> Vec<i32> {
    let signals = [SIGINT, SIGTERM, SIGHUP].into_iter();
    signals.filter(|signal| !is_ignored(*signal)).collect()
}

/// Whether this process inherited the signal as ignored, for example from `nohup` or `trap '' INT`. Then it must stay ignored.
fn is_ignored(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only reads the action of a signal, into memory that outlives the call.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) };
    // SAFETY: zeroed above, which is a valid value, and written by the call.
    let now = unsafe { now.assume_init() };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}
