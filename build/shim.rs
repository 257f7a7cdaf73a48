//! `src/shim.cpp` and `src/shim_server.cpp`: upstream's C++ entry points, behind a C interface that never throws.

use std::path::Path;

use anyhow::{Context, Result};

use crate::build::cargo;

pub fn compile(root: &Path, tree: &Path, has_server: bool) -> Result<()> {
    let names: &[&str] = if has_server {
        &["src/shim.cpp", "src/shim_server.cpp"]
    } else {
        &["src/shim.cpp"]
    };
    let sources: Vec<_> = names.iter().map(|name| root.join(name)).collect();
    for source in &sources {
        cargo::rerun_if_changed(source);
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // link.rs links the C++ library after the archives.
        .cpp_link_stdlib(None)
        .includes(["include", "ggml/include", "common"].map(|dir| tree.join(dir)))
        .files(sources)
        .try_compile("lh_shim")
        .context("cannot compile src/shim.cpp")
}
