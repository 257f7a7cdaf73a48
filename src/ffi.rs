//! The raw C interfaces of llama.cpp, ggml and the shim, as bindgen reads them from the patched headers.
//!
//! On docs.rs, which has no headers, this page lists only the names that the library uses, as structs and constants. `cargo doc`
//! lists all of them.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from C"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
