//! `hugepages demo-model`: writes a model with random weights.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::Ordering,
};

use anyhow::Result;
use clap::{ValueEnum, builder::PossibleValue};

use llama_hugepages::gguf::TensorType;

use hugepages::{
    demo_model::{Arch, Experts, Layout, Output, Spec},
    size::ByteSize,
};

use super::{output, signals};

/// Write a model with random weights, for tests, benchmarks and a first try
///
/// The same arguments give the same bytes on every machine. Any llama.cpp can load the model. It takes any text, answers with
/// printable nonsense, and never ends an answer by itself: it generates as many tokens as the request asks for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write; with --split the common prefix of the shards
    out: PathBuf,

    /// Size of the model: 300M, 1G, 1GiB (powers of 1024), or 7GB (powers of 1000)
    #[arg(long, default_value = "1G", allow_hyphen_values = true)]
    size: ByteSize,

    /// Type of the weights; case does not matter
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "Q8_0",
        ignore_case = true
    )]
    weights: WeightType,

    /// Architecture of the model
    #[arg(long, default_value = "llama")]
    arch: ArchName,

    /// Make a mixture of N experts per layer
    #[arg(long, value_name = "N")]
    experts: Option<u32>,

    /// Experts that compute each token [default: 2]
    #[arg(long, value_name = "K", requires = "experts")]
    experts_used: Option<u32>,

    /// Make N layers [default: the usual number for the size]
    #[arg(long, value_name = "N")]
    layers: Option<u64>,

    /// Use the token embeddings as output layer
    #[arg(long)]
    tied: bool,

    /// Context length in the header of the model [default: 4096, bert 512]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,

    /// Seed of the random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Write N shards: OUT-00001-of-0000N.gguf and so on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    split: u16,

    /// Replace existing files
    #[arg(long)]
    force: bool,
}

/// [`Arch`] as an argument.
#[derive(Clone, Copy, Debug)]
struct ArchName(Arch);

impl ValueEnum for ArchName {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(Arch::Llama),
            Self(Arch::Qwen3),
            Self(Arch::Qwen3Moe),
            Self(Arch::Gemma3),
            Self(Arch::Lfm2),
            Self(Arch::Bert),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(match self.0 {
            Arch::Llama => "dense; with --experts a mixture like Mixtral",
            Arch::Qwen3 => "dense, with norms on queries and keys",
            Arch::Qwen3Moe => "like qwen3, but a mixture; needs --experts",
            Arch::Gemma3 => "like qwen3, with a sliding window in every second layer",
            Arch::Lfm2 => {
                "short convolutions with a recurrent state, and attention in every second layer"
            }
            Arch::Bert => "encoder for embeddings",
        }))
    }
}

/// [`TensorType`] as an argument.
#[derive(Clone, Copy, Debug)]
struct WeightType(&'static str, TensorType);

impl ValueEnum for WeightType {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self("F32", TensorType::F32),
            Self("F16", TensorType::F16),
            Self("BF16", TensorType::BF16),
            Self("Q8_0", TensorType::Q8_0),
            Self("Q4_0", TensorType::Q4_0),
            Self("Q4_K", TensorType::Q4_K),
            Self("Q6_K", TensorType::Q6_K),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0))
    }
}

pub fn run(args: &Args) -> Result<()> {
    let layout = Spec {
        arch: args.arch.0,
        weights: args.weights.1,
        size: args.size,
        experts: args.experts.map(|count| Experts {
            count,
            used: args.experts_used.unwrap_or(2),
        }),
        layers: args.layers,
        tied: args.tied,
        seed: args.seed,
        context: args.context,
    }
    .layout()?;

    let stop = signals::stop()?;
    let bar = output::progress_bar(
        "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let files = layout.write(&Output {
        path: &args.out,
        shards: args.split,
        overwrite: args.force,
        progress: &progress,
    });
    bar.finish_and_clear();
    let files = files?;

    let mut out = io::stdout().lock();
    for file in &files {
        writeln!(
            out,
            "{}: {} bytes ({})",
            file.path.display(),
            file.bytes,
            ByteSize::new(file.bytes)
        )?;
    }
    writeln!(out, "{}", summary(&layout, args.weights.1))?;
    Ok(())
}

/// `llama, Q8_0, 147 tensors, 1073741824 parameters, 16 layers of 2048, …`
fn summary(layout: &Layout, weights: TensorType) -> String {
    let shape = layout.shape();
    let experts = shape
        .experts
        .map(|e| format!(" in each of {} experts ({} used)", e.count, e.used))
        .unwrap_or_default();
    format!(
        "{}, {weights}, {} tensors, {} parameters, {} layers, width {}, {} heads ({} kv), feed-forward {}{experts}",
        shape.arch.name(),
        layout.tensor_count(),
        layout.parameters(),
        shape.layers,
        shape.embedding,
        shape.heads,
        shape.kv_heads,
        shape.feed_forward,
    )
}
