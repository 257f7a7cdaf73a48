//! Computes the width and depth of a model from its size in bytes.

use llama_hugepages::gguf::TensorType;

use super::arch::MAX_LAYERS;
use super::tensors::Tensor;
use super::{Arch, Error, Shape, Spec};
use crate::size::ByteSize;

/// Widths to choose from: multiples of the width of a head, which is 32, 64 or 128.
const WIDTHS: [u64; 21] = [
    64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192,
    10240, 12288, 14336, 16384,
];

/// Approximate size of the header without the table of tensors: keys and vocabulary.
const HEADER_BYTES: u64 = 7000;
/// Size of a tensor in the table, with its name, and half of the padding after its data.
const TABLE_ENTRY_BYTES: u64 = 80;

impl Shape {
    /// The shape with a file size near `spec.size` and proportions near those of real models.
    pub(super) fn choose(spec: &Spec) -> Result<Self, Error> {
        let weights = spec.weights;
        // Far beyond the largest model, and far below an overflow.
        let target = spec.size.bytes().min(1 << 60);
        let mut best: Option<(f64, Self)> = None;
        let (mut smallest, mut largest) = (u64::MAX, 0);
        for embedding in WIDTHS
            .into_iter()
            .filter(|width| width % weights.block_len() == 0)
        {
            // K types need multiples of 256, and real models use such widths with the other types, too.
            let step = if embedding < 512 {
                weights.block_len().max(32)
            } else {
                256
            };
            let shape = Self::of_width(spec, embedding, step);
            // The size is linear in the width of the feed-forward network: two points give the line.
            let (head, layer) = (shape.head_bytes(weights), shape.layer_bytes(weights));
            let slope = Self {
                feed_forward: 2 * step,
                ..shape
            }
            .layer_bytes(weights)
                - layer;
            let most = (8 * embedding / step).max(1);
            for layers in spec.layers.map_or(1..=MAX_LAYERS, |layers| layers..=layers) {
                let least_bytes = head + layers * layer;
                let steps = (target.saturating_sub(least_bytes) + layers * slope / 2)
                    / (layers * slope)
                    + 1;
                let steps = steps.min(most);
                smallest = smallest.min(least_bytes);
                largest = largest.max(least_bytes + layers * slope * (most - 1));

                let shape = Self {
                    layers,
                    feed_forward: steps * step,
                    ..shape
                };
                let bytes = least_bytes + layers * slope * (steps - 1);
                let cost = shape.cost(bytes as f64 / target.max(1) as f64);
                if best.as_ref().is_none_or(|(lowest, _)| cost < *lowest) {
                    best = Some((cost, shape));
                }
            }
        }
        // An error of a quarter is acceptable, a larger one is not.
        if target < smallest / 5 * 4 {
            return Err(Error::TooSmall {
                asked: spec.size,
                smallest: ByteSize::new(smallest),
            });
        }
        match best {
            Some((_, shape)) if target <= largest / 4 * 5 => Ok(shape),
            _ => Err(Error::TooLarge {
                asked: spec.size,
                largest: ByteSize::new(largest),
            }),
        }
    }

    fn of_width(spec: &Spec, embedding: u64, feed_forward: u64) -> Self {
        let head_dim = match embedding {
            ..256 => 32,
            256..2048 => 64,
            _ => 128,
        };
        let heads = embedding / head_dim;
        let kv_heads = match spec.arch {
            Arch::Bert => heads,
            // Usually a quarter of the heads, and at most eight.
            _ if heads.is_multiple_of(8) && heads > 32 => 8,
            _ => (heads / 4).max(1),
        };
        Self {
            arch: spec.arch,
            layers: 1,
            embedding,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            experts: spec.experts,
            tied: spec.tied,
            // An encoder stores a learned vector for each position, which would fill a small model.
            context: spec
                .context
                .unwrap_or(if spec.arch == Arch::Bert { 512 } else { 4096 }),
        }
    }

    /// Distance from the ideal shape. One per cent of size counts as much as a factor of two in a proportion, and ten times as much beyond
    /// three per cent.
    fn cost(&self, size_ratio: f64) -> f64 {
        let off = |ratio: f64| {
            if ratio < 1.0 {
                1.0 / ratio - 1.0
            } else {
                ratio - 1.0
            }
        };
        // Llama 3.2 1B: 2048 / 16. Mixtral's experts are as wide as a dense network, Qwen3's a third of the stream.
        let per_layer = self.embedding as f64 / self.layers as f64 / 100.0;
        let usual = match self.arch {
            Arch::Llama | Arch::Qwen3 | Arch::Gemma3 | Arch::Lfm2 => 3.0,
            Arch::Qwen3Moe => 0.5,
            Arch::Bert => 4.0,
        };
        let widening = self.feed_forward as f64 / self.embedding as f64 / usual;
        let size = (size_ratio - 1.0).abs();
        100.0 * size + 1000.0 * (size - 0.03).max(0.0) + off(per_layer) + off(widening)
    }

    fn head_bytes(&self, weights: TensorType) -> u64 {
        HEADER_BYTES + bytes(&self.head(), weights)
    }

    /// The mean of two layers, because every second one may be of another kind.
    fn layer_bytes(&self, weights: TensorType) -> u64 {
        u64::midpoint(
            bytes(&self.layer(0), weights),
            bytes(&self.layer(1), weights),
        )
    }
}

fn bytes(tensors: &[Tensor], weights: TensorType) -> u64 {
    tensors
        .iter()
        .map(|tensor| tensor.bytes(weights) + TABLE_ENTRY_BYTES)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo_model::{Experts, WEIGHT_TYPES};

    fn spec(arch: Arch, weights: TensorType, size: &str) -> Spec {
        let experts = (arch == Arch::Qwen3Moe).then_some(Experts { count: 8, used: 2 });
        Spec {
            arch,
            weights,
            size: size.parse().unwrap(),
            experts,
            ..Spec::default()
        }
    }

    #[test]
    fn the_size_is_within_five_per_cent_and_within_a_quarter_at_a_megabyte() {
        let families = [
            Arch::Llama,
            Arch::Qwen3,
            Arch::Gemma3,
            Arch::Lfm2,
            Arch::Bert,
        ];
        for weights in WEIGHT_TYPES {
            for arch in families {
                for (size, tolerance) in [
                    ("1M", 0.25),
                    ("2M", 0.25),
                    ("5M", 0.05),
                    ("10M", 0.05),
                    ("33M", 0.05),
                    ("100M", 0.05),
                    ("300M", 0.05),
                    ("1G", 0.05),
                    ("7GB", 0.05),
                    ("40G", 0.05),
                ] {
                    let layout = spec(arch, weights, size).layout().unwrap();
                    let wanted = layout.spec.size.bytes() as f64;
                    let off = (layout.data_bytes() + HEADER_BYTES) as f64 / wanted - 1.0;
                    assert!(
                        off.abs() < tolerance,
                        "{} {weights} {size}: {:+.1} % ({:?})",
                        arch.name(),
                        100.0 * off,
                        layout.shape
                    );
                }
            }
            for size in ["50M", "300M", "1G", "20G"] {
                let layout = spec(Arch::Qwen3Moe, weights, size).layout().unwrap();
                let off = layout.data_bytes() as f64 / layout.spec.size.bytes() as f64 - 1.0;
                assert!(
                    off.abs() < 0.05,
                    "qwen3moe {weights} {size}: {:+.1} % ({:?})",
                    100.0 * off,
                    layout.shape
                );
            }
        }
    }

    #[test]
    fn shapes_look_like_real_models() {
        for size in ["30M", "300M", "1G", "7G", "40G"] {
            let shape = spec(Arch::Llama, TensorType::Q8_0, size)
                .layout()
                .unwrap()
                .shape;
            assert!(
                (20..=400).contains(&(shape.embedding / shape.layers)),
                "{shape:?}"
            );
            assert!(
                (1.5..=6.0).contains(&(shape.feed_forward as f64 / shape.embedding as f64)),
                "{shape:?}"
            );
            assert!(shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
            assert_eq!(shape.heads * shape.head_dim, shape.embedding, "{shape:?}");
        }
    }

    #[test]
    fn a_model_of_one_layer_has_wide_matrices() {
        for weights in [TensorType::F32, TensorType::Q4_0] {
            let one = Spec {
                layers: Some(1),
                ..spec(Arch::Llama, weights, "300M")
            };
            let layout = one.layout().unwrap();
            assert_eq!(layout.shape.layers, 1);
            let off = layout.data_bytes() as f64 / layout.spec.size.bytes() as f64 - 1.0;
            assert!(off.abs() < 0.05, "{off:+.2} ({:?})", layout.shape);
        }
    }

    #[test]
    fn a_size_out_of_reach_names_what_can_be() {
        let error = spec(Arch::Llama, TensorType::Q8_0, "10K")
            .layout()
            .unwrap_err();
        assert!(matches!(error, Error::TooSmall { .. }), "{error}");
        let error = spec(Arch::Llama, TensorType::Q8_0, "16777215T")
            .layout()
            .unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        let many = Spec {
            experts: Some(Experts {
                count: 256,
                used: 8,
            }),
            ..spec(Arch::Llama, TensorType::Q4_K, "1M")
        };
        let Err(Error::TooSmall { smallest, .. }) = many.clone().layout() else {
            panic!("1M for 256 experts")
        };
        assert!(
            Spec {
                size: smallest,
                ..many
            }
            .layout()
            .is_ok(),
            "the named minimum works"
        );
    }

    #[test]
    fn specs_that_contradict_themselves_are_refused() {
        let base = spec(Arch::Llama, TensorType::Q8_0, "10M");
        let experts = |count, used| Some(Experts { count, used });
        for (wrong, expected) in [
            (
                Spec {
                    arch: Arch::Qwen3Moe,
                    ..base.clone()
                },
                "qwen3moe needs a number of experts",
            ),
            (
                Spec {
                    arch: Arch::Qwen3,
                    experts: experts(8, 2),
                    ..base.clone()
                },
                "qwen3 has no experts",
            ),
            (
                Spec {
                    experts: experts(2, 3),
                    ..base.clone()
                },
                "3 used of 2",
            ),
            (
                Spec {
                    experts: experts(8, 0),
                    ..base.clone()
                },
                "0 used of 8",
            ),
            (
                Spec {
                    experts: experts(1000, 2),
                    ..base.clone()
                },
                "2 used of 1000",
            ),
            (
                Spec {
                    layers: Some(129),
                    ..base.clone()
                },
                "number of layers: 129",
            ),
            (
                Spec {
                    arch: Arch::Bert,
                    tied: true,
                    ..base.clone()
                },
                "bert has no output layer",
            ),
            (
                Spec {
                    context: Some(0),
                    ..base.clone()
                },
                "context of 0 tokens",
            ),
        ] {
            let error = wrong.layout().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
