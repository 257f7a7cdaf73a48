//! Upstream's own programs: of the pristine source (stock), and with the series (tools).

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::cmake::{self, Build, commit_label};
use crate::build::patch::Series;
use crate::build::source;
use crate::repo::Repo;

/// What is compared, measured and tested.
const PROGRAMS: &[&str] = &[
    "llama-server",
    "llama-bench",
    "llama-cli",
    "llama-completion",
    "llama-perplexity",
    "llama-quantize",
    "llama-results",
];

/// Which source the programs are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stock,
    Tools,
}

/// Builds with the flags of our own build, in `target/stock` or `target/tools`, and names the binaries.
pub fn build(repo: &Repo, kind: Kind) -> Result<Vec<PathBuf>> {
    cmake::check()?;
    let source = repo.source()?;
    let (dir, ours) = match kind {
        Kind::Stock => (repo.target().join("stock"), None),
        Kind::Tools => (repo.target().join("tools"), Some(env!("CARGO_PKG_VERSION"))),
    };
    let tree = dir.join("llama.cpp");
    match kind {
        Kind::Stock => source::copy(&source.dir, &tree)?,
        Kind::Tools => {
            Series::read(repo.patches().root())?.apply(&source.dir, &tree)?;
        }
    }
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve `{}`", dir.display()))?;
    let commit = commit_label(&source, ours);
    let built = Build {
        dir: &dir,
        commit: &commit,
        targets: PROGRAMS,
    }
    .run()?;
    Ok(PROGRAMS
        .iter()
        .map(|name| built.join("bin").join(name))
        .collect())
}
