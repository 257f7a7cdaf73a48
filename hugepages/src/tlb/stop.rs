//! The end of a measurement that the user cancels.

use std::sync::atomic::{AtomicBool, Ordering};

/// The user cancelled. No memory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Stopped;

/// An error after the user cancelled.
pub fn go_on(stop: &AtomicBool) -> Result<(), Stopped> {
    if stop.load(Ordering::Relaxed) {
        Err(Stopped)
    } else {
        Ok(())
    }
}
