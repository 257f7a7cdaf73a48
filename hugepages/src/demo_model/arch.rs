//! The architectures of demo models.

/// The supported families of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Grouped-query attention and a gated feed-forward network; Mixtral with experts.
    Llama,
    /// As Llama, with norms on queries and keys.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// As Qwen3, with norms behind attention and network, and a sliding window of 512 tokens in every second layer.
    Gemma3,
    /// Short convolutions, whose state is recurrent, and attention in every second layer.
    Lfm2,
    /// An encoder for embeddings: layer norms, biases, learned positions, mean pooling.
    Bert,
}

impl Arch {
    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Gemma3 => "gemma3",
            Self::Lfm2 => "lfm2",
            Self::Bert => "bert",
        }
    }
}

/// Tokens that a short convolution reads, as in LFM2.
pub(super) const CONVOLUTION: u64 = 3;

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts per layer, at least 2.
    pub count: u32,
    /// Experts that compute each token, at most `count`.
    pub used: u32,
}

/// llama.cpp's `LLAMA_MAX_EXPERTS`.
pub(super) const MAX_EXPERTS: u32 = 512;
/// The largest number of layers.
pub(super) const MAX_LAYERS: u64 = 128;
