//! The tensors of each architecture.

use llama_hugepages::gguf::TensorType;

use super::arch::CONVOLUTION;
use super::{Arch, Experts, Shape, vocab};

/// The content of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Of the requested type, scaled by the number of inputs (`ne[0]`).
    Weight,
    /// The same, but F32 in every model, because upstream never quantises such small tensors.
    F32Weight,
    /// F32, around one.
    Norm,
    /// F32, around zero.
    Bias,
}

#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) content: Content,
}

impl Tensor {
    fn new(name: impl Into<String>, content: Content, shape: impl Into<Vec<u64>>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            content,
        }
    }

    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    pub(super) fn ty(&self, weights: TensorType) -> TensorType {
        if self.content == Content::Weight {
            weights
        } else {
            TensorType::F32
        }
    }

    pub(super) fn bytes(&self, weights: TensorType) -> u64 {
        let ty = self.ty(weights);
        self.elements() / ty.block_len() * ty.block_bytes()
    }
}

impl Shape {
    /// All tensors, in file order.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = self.head();
        // Upstream's converters write the output layer first or last. Here it comes last, so that two shards differ from two halves.
        let tail = tensors.split_off(
            tensors
                .iter()
                .position(|t| t.name.starts_with("output"))
                .unwrap_or(tensors.len()),
        );
        tensors.extend((0..self.layers).flat_map(|index| self.layer(index)));
        tensors.extend(tail);
        tensors
    }

    /// The tensors outside of the layers.
    pub(super) fn head(&self) -> Vec<Tensor> {
        use Content::{Bias, F32Weight, Norm, Weight};
        let width = self.embedding;
        let mut tensors = vec![Tensor::new(
            "token_embd.weight",
            Weight,
            [width, vocab::SIZE],
        )];
        if self.arch == Arch::Bert {
            tensors.push(Tensor::new("token_types.weight", F32Weight, [width, 2]));
            tensors.push(Tensor::new(
                "position_embd.weight",
                F32Weight,
                [width, self.context.into()],
            ));
            tensors.push(Tensor::new("token_embd_norm.weight", Norm, [width]));
            tensors.push(Tensor::new("token_embd_norm.bias", Bias, [width]));
            return tensors;
        }
        // Upstream's name of the norm of LFM2's output.
        let norm = if self.arch == Arch::Lfm2 {
            "token_embd_norm.weight"
        } else {
            "output_norm.weight"
        };
        tensors.push(Tensor::new(norm, Norm, [width]));
        if !self.tied {
            tensors.push(Tensor::new("output.weight", Weight, [width, vocab::SIZE]));
        }
        tensors
    }

    /// The tensors of layer `index`.
    pub(super) fn layer(&self, index: u64) -> Vec<Tensor> {
        use Content::{Bias, F32Weight, Norm, Weight};
        let (width, inner) = (self.embedding, self.feed_forward);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut add = |name: &str, content, shape: &[u64]| {
            tensors.push(Tensor::new(format!("blk.{index}.{name}"), content, shape));
        };
        if self.arch == Arch::Bert {
            let mut with_bias = |name: &str, inputs, outputs| {
                add(&format!("{name}.weight"), Weight, &[inputs, outputs]);
                add(&format!("{name}.bias"), Bias, &[outputs]);
            };
            with_bias("attn_q", width, width);
            with_bias("attn_k", width, width);
            with_bias("attn_v", width, width);
            with_bias("attn_output", width, width);
            with_bias("ffn_up", width, inner);
            with_bias("ffn_down", inner, width);
            for norm in ["attn_output_norm", "layer_output_norm"] {
                add(&format!("{norm}.weight"), Norm, &[width]);
                add(&format!("{norm}.bias"), Bias, &[width]);
            }
            return tensors;
        }
        add("attn_norm.weight", Norm, &[width]);
        if self.has_convolution(index) {
            add("shortconv.conv.weight", F32Weight, &[CONVOLUTION, width]);
            add("shortconv.in_proj.weight", Weight, &[width, 3 * width]);
            add("shortconv.out_proj.weight", Weight, &[width, width]);
        } else {
            add("attn_q.weight", Weight, &[width, queries]);
            add("attn_k.weight", Weight, &[width, keys]);
            add("attn_v.weight", Weight, &[width, keys]);
            add("attn_output.weight", Weight, &[queries, width]);
            if !matches!(self.arch, Arch::Llama) {
                add("attn_q_norm.weight", Norm, &[self.head_dim]);
                add("attn_k_norm.weight", Norm, &[self.head_dim]);
            }
        }
        if self.arch == Arch::Gemma3 {
            add("post_attention_norm.weight", Norm, &[width]);
            add("post_ffw_norm.weight", Norm, &[width]);
        }
        add("ffn_norm.weight", Norm, &[width]);
        if let Some(Experts { count, .. }) = self.experts {
            let count = u64::from(count);
            add("ffn_gate_inp.weight", F32Weight, &[width, count]);
            add("ffn_gate_exps.weight", Weight, &[width, inner, count]);
            add("ffn_up_exps.weight", Weight, &[width, inner, count]);
            add("ffn_down_exps.weight", Weight, &[inner, width, count]);
        } else {
            add("ffn_gate.weight", Weight, &[width, inner]);
            add("ffn_up.weight", Weight, &[width, inner]);
            add("ffn_down.weight", Weight, &[inner, width]);
        }
        tensors
    }
}
