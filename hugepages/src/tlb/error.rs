//! Errors of a measurement.

use std::io;

use super::{Spec, Stopped};
use crate::size::ByteSize;

/// Why the measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlbError {
    /// The requested size is too small.
    #[error("size {size} is smaller than the minimum {}", Spec::MIN_SIZE)]
    TooSmall {
        /// Requested size.
        size: ByteSize,
    },
    /// Too little memory is available.
    #[error("too little memory: {size} requested, {room} usable")]
    NoRoom {
        /// Requested size.
        size: ByteSize,
        /// Usable memory, without the margin for other processes.
        room: ByteSize,
    },
    /// The number of rounds is 0.
    #[error("cannot measure with 0 rounds")]
    NoRounds,
    /// The kernel does not report the backing of the memory.
    #[error("cannot read the backing of memory from `/proc/self/smaps`")]
    NoBacking(#[source] io::Error),
    /// The user cancelled.
    #[error(transparent)]
    Cancelled(#[from] Stopped),
}

impl TlbError {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoRoom { room, .. } if *room >= Spec::MIN_SIZE => {
                let mib = room.bytes() >> 20;
                Some(format!("use --size {mib}M or less"))
            }
            _ => None,
        }
    }
}
