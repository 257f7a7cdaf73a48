//! Rust declarations of the C interfaces, from the patched headers.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::build::cargo;

/// The functions of ggml for the demo model and the examples. The interfaces of llama and gguf are bound completely.
const GGML: &[&str] = &[
    "ggml_init",
    "ggml_free",
    "ggml_tensor_overhead",
    "ggml_new_tensor.*",
    "ggml_(set|get)_name",
    "ggml_get_data",
    "ggml_(blck|type|row)_size",
    "ggml_type_name",
    "ggml_nbytes",
    "ggml_nelements",
    "ggml_quantize_.*",
    "ggml_fp32_to_fp16(_row)?",
    "ggml_get_type_traits",
    "ggml_validate_row_data",
    "ggml_version",
    "ggml_commit",
    "ggml_hugepages_.*",
];

/// Checks that libclang loads, before the download.
pub fn check() -> Result<()> {
    clang_sys::load().map_err(|e| {
        // The rest of the message is a list of file names and variables.
        let cause = e.split([':', '\n']).next().unwrap_or_default();
        anyhow!("bindgen cannot load libclang: {cause}\nhint: apt-get install libclang-dev")
    })
}

/// Writes `out/bindings.rs`.
pub fn generate(root: &Path, tree: &Path, out: &Path) -> Result<()> {
    let shim = root.join("src/shim.h");
    cargo::rerun_if_changed(&shim);
    let mut builder = bindgen::Builder::default()
        .header(shim.display().to_string())
        .clang_args(
            ["include", "ggml/include"].map(|dir| format!("-I{}", tree.join(dir).display())),
        )
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Prettyplease)
        // `GGML_TYPE_F32`, not `ggml_type_GGML_TYPE_F32`.
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .allowlist_item("(llama|gguf|lh)_.*")
        .allowlist_var("(LLAMA|GGUF)_.*")
        .allowlist_type("ggml_(type|log_level|hugepages_.*)")
        .allowlist_var("GGML_(MAX_|HUGEPAGES_|DEFAULT_).*")
        // These functions take C's `FILE`, which Rust cannot use.
        .blocklist_function(".*_file_ptr|.*_from_file_ptr");
    for name in GGML {
        builder = builder.allowlist_function(name);
    }
    let bindings = builder.generate().map_err(|e| {
        anyhow!("cannot read llama.cpp's headers: {e}\nhint: apt-get install libclang-dev")
    })?;
    bindings
        .write_to_file(out.join("bindings.rs"))
        .context("cannot write bindings.rs")
}
