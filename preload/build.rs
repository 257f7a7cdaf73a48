//! Compiles the engine once more, as code for a shared library, and links it with hidden symbols.
//!
//! The archives of the library crate are code for programs, so a shared library cannot contain them. This takes the same patched source
//! and the same generated headers: the engine, and the parts of ggml that it and the reader of GGUF files use.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

/// Files of ggml, below `ggml/src`.
const GGML: &[&str] = &["ggml.c", "ggml-quants.c", "ggml-threading.cpp", "gguf.cpp"];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    // The library crate's build script tells where its files are.
    let theirs: PathBuf = env::var_os("DEP_LLAMA_OUT")
        .context("the crate llama-hugepages names no folder")?
        .into();
    let out: PathBuf = env::var_os("OUT_DIR")
        .context("no OUT_DIR: run this program with cargo")?
        .into();
    println!(
        "cargo::rustc-env=LLAMA_HUGEPAGES_BINDINGS={}",
        theirs.join("bindings.rs").display()
    );
    println!(
        "cargo::rerun-if-changed={}",
        theirs.join("llama.cpp/ggml").display()
    );

    let source = theirs.join("llama.cpp/ggml/src");
    let mut engine = files(&source.join("ggml-hugepages"))?;
    engine.extend(GGML.iter().map(|name| source.join(name)));
    let is_c = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "c");
    for (name, is_cpp) in [("preload_c", false), ("preload_cpp", true)] {
        let mut build = cc::Build::new();
        build
            .cpp(is_cpp)
            .std(if is_cpp { "c++17" } else { "gnu11" })
            .cpp_link_stdlib(None)
            .pic(true)
            .opt_level(3)
            .warnings(false)
            .define("NDEBUG", None)
            .define("_GNU_SOURCE", None)
            .define("_XOPEN_SOURCE", "600")
            .flag("-fvisibility=hidden")
            .flag("-ffunction-sections")
            .flag("-fdata-sections")
            .include(&source)
            .include(source.join("../include"))
            // The version of ggml, which the engine writes to its stores.
            .include(theirs.join("build/ggml/src"))
            .files(engine.iter().filter(|path| is_c(path) != is_cpp));
        build
            .try_compile(name)
            .with_context(|| format!("cannot compile {name}"))?;
    }

    // A program may be in C, or have another C++ library. The first library of this name that the linker finds is this script.
    fs::write(out.join("libstdc++.so"), "INPUT(-l:libstdc++.a)\n")
        .context("cannot write a linker script")?;
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=dylib=stdc++");
    println!("cargo::rustc-link-arg-cdylib=-Wl,--exclude-libs,ALL");
    // All functions are found before the first call, and nothing unloads the library while the program uses its memory.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,now,-z,nodelete");
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let mut sources: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|it| it == "cpp"))
        .collect();
    sources.sort();
    Ok(sources)
}
