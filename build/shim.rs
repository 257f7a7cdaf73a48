//! `src/shim.cpp` and `src/shim_server.cpp`: upstream's C++ entry points, behind a C interface that never throws.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::build::cargo;

pub fn compile(root: &Path, tree: &Path, out: &Path, has_server: bool) -> Result<()> {
    let names: &[&str] = if has_server {
        &["shim", "shim_server"]
    } else {
        &["shim"]
    };
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // link.rs links the C++ library after the archives.
        .cpp_link_stdlib(None)
        .includes(["include", "ggml/include", "common"].map(|dir| tree.join(dir)));
    let compiler = build.try_get_compiler().context("no C++ compiler")?;
    for name in names {
        let source = root.join("src").join(name).with_extension("cpp");
        let object = out.join(name).with_extension("o");
        cargo::rerun_if_changed(&source);
        // The crate puts CXXFLAGS after the flags of a `Build`, so only a command of our own can take back -flto.
        let mut command = compiler.to_command();
        command.args(["-fno-lto", "-c"]).arg(&source);
        let status = command.arg("-o").arg(&object).status();
        let status =
            status.with_context(|| format!("cannot run `{}`", compiler.path().display()))?;
        ensure!(status.success(), "cannot compile src/{name}.cpp");
        build.object(object);
    }
    build
        .try_compile("lh_shim")
        .context("cannot archive the objects of src/shim.cpp")
}
