//! Errors of a GGUF header.

use std::io;
use std::path::PathBuf;

use super::tensor_type::TensorType;
use crate::ffi;

/// Errors of a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum GgufError {
    /// Upstream's parser returns no reason, but it logs one.
    #[error("cannot parse `{path}` as a GGUF file")]
    NotReadable { path: PathBuf },
    #[error("cannot open `{path}`")]
    Open { path: PathBuf, source: io::Error },
    #[error("`{0}` contains a zero byte")]
    ZeroByte(String),
    #[error("cannot set key `{0}`: it is fixed")]
    Reserved(String),
    #[error("tensor name `{0}` is longer than {max} bytes", max = ffi::GGML_MAX_NAME - 1)]
    NameTooLong(String),
    #[error("duplicate tensor `{0}`")]
    DuplicateTensor(String),
    #[error("tensor `{name}` has an invalid shape for type {ty}: {shape:?}")]
    Shape {
        name: String,
        ty: TensorType,
        shape: Vec<u64>,
    },
    #[error("out of memory in ggml")]
    OutOfMemory,
}
