//! Parameters of a load and of a context.
//!
//! Both start from llama.cpp's defaults or from the `LLAMA_ARG_*` environment variables, and a `with_*` call overrides either. llama.cpp's
//! own parser reads the variables, so they follow the rules of its programs.

mod context;
mod env;
mod model;

pub use context::{ContextParams, Pooling};
pub use model::{HugePages, LoadMode, ModelParams, PageSize};
