//! Parameters of a load and of a context.
//!
//! Both start from llama.cpp's defaults or from the `LLAMA_ARG_*` environment variables, and a `with_*` call wins over
//! either. The variables are read by llama.cpp's own parser, so the rules are those of its programs.

mod context;
mod env;
mod model;

pub use context::{ContextParams, Pooling};
pub use model::{HugePages, LoadMode, ModelParams, PageSize};
