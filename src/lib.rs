//! llama.cpp with model memory on Linux huge pages.
//!
//! The build takes llama.cpp's pinned source, applies a small series of patches, and links the result: into the drop-in
//! `llama-server`, and into this library.
//!
//! ```no_run
//! use llama_hugepages::{Batch, Context, ContextParams, HugePages, Model, ModelParams, Sampler, Specials};
//!
//! let context = ContextParams::default().with_n_ctx(2048);
//! let params = ModelParams::from_env()?.with_hugepages(HugePages::Prefer).with_context(&context);
//! let model = Model::load("model.gguf", &params)?;
//! let mut context = Context::new(&model, &context)?;
//! println!("{}", model.report()?);
//!
//! let tokens = model.tokenize("Once upon a time", Specials::Add)?;
//! context.decode(&Batch::prompt(&tokens))?;
//! let next = Sampler::greedy(&model).sample(&mut context, tokens.len() - 1)?;
//! println!("{}", String::from_utf8_lossy(&model.piece(next)?));
//! # Ok::<(), llama_hugepages::Error>(())
//! ```
//!
//! `examples/generate.rs` is a whole program. [`ffi`] has the raw interfaces, for functions without a wrapper.

#![warn(missing_docs)]

mod backend;
mod batch;
mod context;
mod error;
pub mod ffi;
pub mod gguf;
mod logging;
mod model;
mod page_size;
mod params;
mod report;
mod sampler;
mod token;
mod vocab;

pub use backend::{init, log_to};
pub use batch::Batch;
pub use context::Context;
pub use error::{Cause, Error, Refusal, Said, Shortage};
pub use logging::LogTarget;
pub use model::Model;
pub use page_size::{HugePageSize, ParseHugePageSizeError};
pub use params::{ContextParams, HugePages, LoadMode, ModelParams, PageSize, Pooling};
pub use report::{Backing, Kind, Load, Report, Usage, report};
pub use sampler::{Sampler, SamplerChain};
pub use token::Token;
pub use vocab::Specials;
