//! The dimensions of a model.

use super::{Arch, Experts};

/// The dimensions of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The family.
    pub arch: Arch,
    /// Number of layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub embedding: u64,
    /// Heads of attention.
    pub heads: u64,
    /// Heads of keys and values, each shared by `heads / kv_heads` heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Width of the feed-forward network, or of one expert's.
    pub feed_forward: u64,
    /// Experts per layer, if it is a mixture.
    pub experts: Option<Experts>,
    /// The output layer uses the token embeddings instead of weights of its own.
    pub tied: bool,
    /// Context length.
    pub context: u32,
}

impl Shape {
    /// Whether layer `index` has a short convolution in place of attention.
    pub(super) fn has_convolution(&self, index: u64) -> bool {
        self.arch == Arch::Lfm2 && index.is_multiple_of(2)
    }
}
