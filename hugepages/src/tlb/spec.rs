//! The parameters of a measurement.

use super::Pages;
use crate::size::ByteSize;

/// Parameters of a measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Size of each memory; at least [`Spec::MIN_SIZE`].
    pub size: ByteSize,
    /// Page sizes, in the order of the rounds.
    pub pages: Vec<Pages>,
    /// Rounds that count; at least 1.
    pub repeats: u32,
}

impl Spec {
    /// Smaller memories fit into the caches and the first levels of the TLB.
    pub const MIN_SIZE: ByteSize = ByteSize::new(1 << 20);
}
