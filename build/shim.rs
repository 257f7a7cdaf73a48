//! `src/shim.cpp`: upstream's C++ entry points, behind a C interface that never throws.

use std::path::Path;

use anyhow::{Context, Result};

use crate::build::cargo;

pub fn compile(root: &Path, tree: &Path) -> Result<()> {
    let source = root.join("src/shim.cpp");
    cargo::rerun_if_changed(&source);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // link.rs links the C++ library after the archives.
        .cpp_link_stdlib(None)
        .includes(["include", "ggml/include", "common"].map(|dir| tree.join(dir)))
        .file(source)
        .try_compile("lh_shim")
        .context("cannot compile src/shim.cpp")
}
