//! The library that records the reads of weights, and the flags that link it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::run;

const SOURCE: &str = include_str!("recorder.cpp");

/// Compiles the library into a folder. Returns the options for CMake.
pub fn build(folder: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let file = |name: &str| folder.join(name);
    let (source, object, library) = (
        file("recorder.cpp"),
        file("recorder.o"),
        file("librecorder.a"),
    );
    fs::write(&source, SOURCE).with_context(|| format!("cannot write `{}`", source.display()))?;
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    // CXX may start with a wrapper, such as `ccache g++`.
    let mut words = compiler.split_whitespace();
    let mut compile = Command::new(words.next().unwrap_or("c++"));
    compile
        .args(words)
        .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-c", "-o"])
        .args([&object, &source]);
    run(&mut compile)?;
    run(Command::new("ar").arg("rcs").args([&library, &object]))?;

    let wraps: Vec<_> = wrapped().map(|name| format!("-Wl,--wrap={name}")).collect();
    Ok(vec![
        format!("-DCMAKE_EXE_LINKER_FLAGS={}", wraps.join(" ")),
        // After all other libraries. CMake's own test programs need nothing of an archive.
        format!("-DCMAKE_CXX_STANDARD_LIBRARIES={}", library.display()),
    ])
}

/// The functions that the library replaces.
fn wrapped() -> impl Iterator<Item = &'static str> {
    SOURCE.lines().filter_map(|line| {
        let (macro_name, arguments) = line.split_once('(')?;
        let name = arguments.split(',').next()?;
        (matches!(macro_name, "DOT" | "ROWS")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_names_the_functions() {
        let names: Vec<_> = wrapped().collect();
        assert!(names.contains(&"ggml_vec_dot_f32"), "{names:?}");
        assert!(
            names.iter().all(|name| name.starts_with("ggml_")),
            "{names:?}"
        );
    }
}
