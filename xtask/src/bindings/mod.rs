//! Packages of other languages that contain llama.cpp, with the series in it: a wheel, and a copy of a crate.
//!
//! Both packages contain a `llama_model_params` that our series extends, so their libraries and ours cannot be mixed.

pub mod sys_crate;
pub mod wheel;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::build::tree::Overlay;

/// Moves files into a folder of the package.
fn below(folder: &Path, files: Overlay) -> impl Iterator<Item = (std::path::PathBuf, Vec<u8>)> {
    files
        .into_iter()
        .map(|(path, content)| (folder.join(path), content))
}

/// Reads a text file of the package, and replaces the only occurrence of a text.
fn replace_in(package: &Path, file: &str, from: &str, to: &str) -> Result<Vec<u8>> {
    let path = package.join(file);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let count = text.matches(from).count();
    ensure!(
        count == 1,
        "`{file}` of the package contains `{}` {count} times, expected once",
        from.trim()
    );
    Ok(text.replace(from, to).into_bytes())
}
