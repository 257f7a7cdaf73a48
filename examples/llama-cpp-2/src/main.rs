//! Continues a text: tokens to stdout, the memory on huge pages to stderr.
//!
//! ```sh
//! cargo xtask sys-crate
//! cd examples/llama-cpp-2
//! LLAMA_ARG_HUGEPAGES=1 cargo run --release -- model.gguf "Once upon a time"
//! ```
//!
//! The program contains nothing about huge pages: llama.cpp reads the environment variables.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::num::NonZeroU32;

use anyhow::{Context as _, Result};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;

const TOKENS: i32 = 24;

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let path = args.next().context("usage: generate MODEL [PROMPT]")?;
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".to_owned());

    let backend = LlamaBackend::init()?;
    let model = LlamaModel::load_from_file(&backend, &path, &LlamaModelParams::default())
        .with_context(|| format!("cannot load `{path}`"))?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_threads(2)
        .with_n_threads_batch(2);
    let mut context = model.new_context(&backend, params)?;

    let tokens = model.vocab().tokenize(prompt.as_bytes(), true, false);
    let mut position = i32::try_from(tokens.len())?;
    let mut batch = LlamaBatch::new(512, 1);
    for (i, token) in (0..).zip(&tokens) {
        batch.add(*token, i, &[0], i + 1 == position)?;
    }
    let mut sampler = LlamaSampler::greedy();
    let mut text = Vec::new();
    for _ in 0..TOKENS {
        context.decode(&mut batch)?;
        let token = sampler.sample(&context, -1);
        text.extend(model.vocab().detokenize(&[token], false, true));
        batch.clear();
        batch.add(token, position, &[0], true)?;
        position += 1;
    }
    io::stdout().write_all(&text)?;
    println!();

    let status = fs::read_to_string("/proc/self/status")?;
    let huge = status
        .lines()
        .find(|line| line.starts_with("HugetlbPages:"));
    eprintln!("{}", huge.unwrap_or("HugetlbPages: unknown"));
    Ok(())
}
