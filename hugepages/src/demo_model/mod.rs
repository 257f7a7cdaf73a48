//! Models with random weights, for tests, benchmarks and a first try: any size, several architectures, no download.
//!
//! A [`Spec`] (the requested properties) becomes a [`Layout`] (every tensor and its place). A layout becomes one file, or several shards.
//! The same spec gives the same bytes on every machine. Each tensor uses its own random stream, seeded by the spec's seed and the tensor's
//! name, so neither its place nor the number of shards changes its bytes. Data is generated and written in pieces of a megabyte, so memory
//! does not grow with the model.
//!
//! ```text
//! Spec ──fit──▶ Shape ──tensors──▶ Layout ─keys, vocab─▶ header of each file ─┐
//!                                   └─────blocks──▶ tensor data ───────────────┴─▶ OUT.part ──all done──▶ OUT
//! ```
//!
//! The models load in stock llama.cpp, accept any text, and answer with printable nonsense of the requested length.
//! `tokenizer.ggml.suppress_tokens` lists all tokens that end a text or are not printable, and upstream's samplers obey this list.
//!
//! ```
//! use hugepages::demo_model::{Output, Spec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("demo.gguf");
//! let layout = Spec { size: "2M".parse()?, ..Spec::default() }.layout()?;
//! let files = layout.write(&Output::file(&path))?;
//! assert_eq!(std::fs::metadata(&path)?.len(), files[0].bytes);
//! # Ok(())
//! # }
//! ```

mod arch;
mod blocks;
mod error;
mod fit;
mod keys;
mod layout;
mod output;
mod part;
mod shape;
mod shards;
mod spec;
mod tensors;
mod vocab;
mod write;

pub use arch::{Arch, Experts};
pub use error::Error;
pub use layout::Layout;
pub use output::Output;
pub use part::WrittenFile;
pub use shape::Shape;
pub use spec::{Spec, WEIGHT_TYPES};
