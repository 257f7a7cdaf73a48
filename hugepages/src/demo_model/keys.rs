//! The keys of the header.

use llama_hugepages::ffi;
use llama_hugepages::gguf::{Gguf, GgufError, TensorType};

use super::arch::CONVOLUTION;
use super::{Arch, Experts, Layout, Shape, Spec, vocab};

impl Layout {
    /// The keys of the header that describe the whole model.
    pub(super) fn set_keys(&self, header: &mut Gguf) -> Result<(), GgufError> {
        let Spec {
            arch,
            weights,
            seed,
            ..
        } = &self.spec;
        header.set_str("general.architecture", arch.name())?;
        header.set_str("general.type", "model")?;
        header.set_str("general.name", &format!("demo {} {weights}", arch.name()))?;
        header.set_str(
            "general.description",
            &format!("random weights, seed {seed}, made by llama-hugepages: answers are nonsense"),
        )?;
        header.set_u32("general.file_type", file_type(*weights))?;
        header.set_u32("general.quantization_version", 2)?;
        self.shape.set_keys(header)?;
        vocab::set(
            header,
            if *arch == Arch::Bert {
                vocab::Use::Embedding
            } else {
                vocab::Use::Generation
            },
        )
    }
}

impl Shape {
    /// Writes the keys that the architecture reads.
    fn set_keys(&self, header: &mut Gguf) -> Result<(), GgufError> {
        let arch = self.arch.name();
        let mut set =
            |key: &str, value: u64| header.set_u32(&format!("{arch}.{key}"), value as u32);
        set("vocab_size", vocab::SIZE)?;
        set("context_length", self.context.into())?;
        set("embedding_length", self.embedding)?;
        set("block_count", self.layers)?;
        set("feed_forward_length", self.feed_forward)?;
        set("attention.head_count", self.heads)?;
        if self.arch == Arch::Bert {
            set("pooling_type", 1)?; // mean
            header.set_bool(&format!("{arch}.attention.causal"), false)?;
            return header.set_f32(&format!("{arch}.attention.layer_norm_epsilon"), 1e-12);
        }
        if self.arch == Arch::Lfm2 {
            set("shortconv.l_cache", CONVOLUTION)?;
        } else {
            set("attention.head_count_kv", self.kv_heads)?;
        }
        set("attention.key_length", self.head_dim)?;
        set("attention.value_length", self.head_dim)?;
        set("rope.dimension_count", self.head_dim)?;
        if let Some(Experts { count, used }) = self.experts {
            set("expert_count", count.into())?;
            set("expert_used_count", used.into())?;
            if self.arch == Arch::Qwen3Moe {
                set("expert_feed_forward_length", self.feed_forward)?;
            }
        }
        if self.arch == Arch::Gemma3 {
            set("attention.sliding_window", 512)?;
            // Upstream's default is five of six layers. With every second one, a model of two layers has both kinds.
            set("attention.sliding_window_pattern", 2)?;
        }
        if self.arch == Arch::Lfm2 {
            let heads_of = |layer| {
                if self.has_convolution(layer) {
                    0
                } else {
                    self.kv_heads as i32
                }
            };
            let heads: Vec<_> = (0..self.layers).map(heads_of).collect();
            header.set_i32_array(&format!("{arch}.attention.head_count_kv"), &heads)?;
        }
        header.set_f32(&format!("{arch}.rope.freq_base"), 10_000.0)?;
        header.set_f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5)
    }
}

/// `general.file_type`, llama.cpp's `llama_ftype`: the type of most weights.
fn file_type(weights: TensorType) -> u32 {
    match weights {
        TensorType::F32 => ffi::LLAMA_FTYPE_ALL_F32,
        TensorType::BF16 => ffi::LLAMA_FTYPE_MOSTLY_BF16,
        TensorType::Q8_0 => ffi::LLAMA_FTYPE_MOSTLY_Q8_0,
        TensorType::Q4_0 => ffi::LLAMA_FTYPE_MOSTLY_Q4_0,
        TensorType::Q4_K => ffi::LLAMA_FTYPE_MOSTLY_Q4_K_S,
        TensorType::Q6_K => ffi::LLAMA_FTYPE_MOSTLY_Q6_K,
        _ => ffi::LLAMA_FTYPE_MOSTLY_F16,
    }
}
