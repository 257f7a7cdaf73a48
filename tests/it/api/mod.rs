//! The Rust API, in this process.
//!
//! `report()` covers the whole process. A test that puts weights on huge pages holds the pool, so the report covers that test alone.

mod architectures;
mod compute;
mod embeddings;
mod env;
mod example;
mod load;

use std::path::{Path, PathBuf};

use llama_hugepages::{Context, ContextParams, HugePages, LogTarget, Model, ModelParams, log_to};

use crate::support::models;

/// Enough pages for the contexts of these tests. A context takes its pages when it is created, so the load does not count them.
const FOR_CONTEXTS: u64 = 64;

fn model_file() -> PathBuf {
    models::demo("20M", "Q8_0")
}

/// Without repacking all weights stay in the file image.
fn params(hugepages: HugePages) -> ModelParams {
    log_to(LogTarget::Nowhere);
    ModelParams::default()
        .with_hugepages(hugepages)
        .with_repack(false)
}

fn load(path: &Path, hugepages: HugePages) -> Model {
    Model::load(path, &params(hugepages))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn context(model: &Model) -> Context {
    Context::new(
        model,
        &ContextParams::default().with_n_ctx(512).with_threads(2),
    )
    .expect("the model has weights")
}
