//! The requested properties of a model, and their limits.

use llama_hugepages::gguf::TensorType;

use super::arch::{MAX_EXPERTS, MAX_LAYERS};
use super::{Arch, Error, Experts};
use crate::size::ByteSize;

/// The weight types that can be generated.
pub const WEIGHT_TYPES: [TensorType; 7] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
];

/// The requested properties of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The family of the model.
    pub arch: Arch,
    /// Type of the weights: one of [`WEIGHT_TYPES`].
    pub weights: TensorType,
    /// Size of the file, or of all shards together. The result is within 5 %, at a megabyte or two within 25 %.
    pub size: ByteSize,
    /// Needed for [`Arch::Qwen3Moe`], possible for [`Arch::Llama`].
    pub experts: Option<Experts>,
    /// Number of layers, at most 128; `None` means the usual number for the size.
    pub layers: Option<u64>,
    /// No separate output layer, as in small models.
    pub tied: bool,
    /// Seed of the random weights.
    pub seed: u64,
    /// Context length in the header; `None` means 4096, or 512 for an encoder.
    pub context: Option<u32>,
}

impl Default for Spec {
    /// A dense Llama of 1 GiB in `Q8_0`.
    fn default() -> Self {
        Self {
            arch: Arch::Llama,
            weights: TensorType::Q8_0,
            size: ByteSize::new(1 << 30),
            experts: None,
            layers: None,
            tied: false,
            seed: 0,
            context: None,
        }
    }
}

impl Spec {
    /// Checks that the parts do not contradict each other.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !WEIGHT_TYPES.contains(&self.weights) {
            return Err(Error::WeightType(self.weights));
        }
        match (self.arch, self.experts) {
            (Arch::Qwen3Moe, None) => return Err(Error::NeedsExperts(self.arch)),
            (Arch::Qwen3 | Arch::Gemma3 | Arch::Lfm2 | Arch::Bert, Some(_)) => {
                return Err(Error::TakesNoExperts(self.arch));
            }
            (_, Some(Experts { count, used }))
                if !(2..=MAX_EXPERTS).contains(&count) || !(1..=count).contains(&used) =>
            {
                return Err(Error::Experts { count, used });
            }
            _ => {}
        }
        if let Some(layers) = self
            .layers
            .filter(|layers| !(1..=MAX_LAYERS).contains(layers))
        {
            return Err(Error::Layers(layers));
        }
        if self.tied && self.arch == Arch::Bert {
            return Err(Error::CannotTie(self.arch));
        }
        if let Some(context) = self
            .context
            .filter(|tokens| !(8..=1 << 24).contains(tokens))
        {
            return Err(Error::Context(context));
        }
        Ok(())
    }
}
