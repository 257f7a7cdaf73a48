//! The C interface of the engine and of the reader of GGUF files, as bindgen reads it from the patched headers.

#![allow(
    dead_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from C"
)]

include!(env!("LLAMA_HUGEPAGES_BINDINGS"));
