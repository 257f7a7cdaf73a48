//! llama.cpp with model memory on Linux huge pages.
//!
//! The build takes llama.cpp's pinned source, applies a small series of patches, and links the result: into the drop-in
//! `llama-server`, and into this library.

#![warn(missing_docs)]

pub mod demo_model;
pub mod ffi;
pub mod gguf;
pub mod size;
