//! Upstream's own programs: of the pristine source (stock), and with the series (tools), for any CPU (qemu),
//! and to be looked into (instrumented).

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::cmake::{self, Build, commit_label};
use crate::build::patch::Series;
use crate::build::{source, ui};
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
    "ggml-rpc-server",
];

/// The same, and what makes a tiny model of each architecture.
const TOOLS: &[&str] = &{
    let mut all = ["test-llama-archs"; PROGRAMS.len() + 1];
    let mut i = 0;
    while i < PROGRAMS.len() {
        all[i] = PROGRAMS[i];
        i += 1;
    }
    all
};

/// What the emulated machine runs.
const QEMU_PROGRAMS: &[&str] = &["llama-server"];

/// What is enough to load a model and to infer.
const INSTRUMENTED_PROGRAMS: &[&str] = &["llama-completion"];

/// Which source the programs are made of, and for which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stock,
    Tools,
    /// As tools, but not for the CPU they are built on: an emulated one has less.
    Qemu,
    /// As stock and as tools, to count instructions: Valgrind knows fewer of them than the CPU.
    PortableStock,
    PortableTools,
    /// As tools, with sanitizers.
    Address,
    Thread,
}

/// What tests look into while it runs.
pub const INSTRUMENTED: [Kind; 4] = [
    Kind::PortableStock,
    Kind::PortableTools,
    Kind::Address,
    Kind::Thread,
];

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Tools => "tools",
            Self::Qemu => "qemu",
            Self::PortableStock => "portable-stock",
            Self::PortableTools => "portable-tools",
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Stock => PROGRAMS,
            Self::Tools => TOOLS,
            Self::Qemu => QEMU_PROGRAMS,
            Self::PortableStock | Self::PortableTools | Self::Address | Self::Thread => {
                INSTRUMENTED_PROGRAMS
            }
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            // A worker of a distributed run is one of the programs, and "another device" for tests without a GPU.
            Self::Stock => &["-DGGML_RPC=ON"],
            Self::Tools => &["-DGGML_RPC=ON", "-DLLAMA_BUILD_TESTS=ON"],
            // AVX2 at most, as upstream's defaults are then; QEMU emulates that since 7.2.
            Self::Qemu | Self::PortableStock | Self::PortableTools => &["-DGGML_NATIVE=OFF"],
            Self::Address => &[
                "-DLLAMA_SANITIZE_ADDRESS=ON",
                "-DLLAMA_SANITIZE_UNDEFINED=ON",
            ],
            // The sanitizer does not see how OpenMP's threads wait for each other.
            Self::Thread => &["-DLLAMA_SANITIZE_THREAD=ON", "-DGGML_OPENMP=OFF"],
        }
    }
}

/// Builds with the flags of our own build, in a folder of `target/`, and names the binaries.
pub fn build(repo: &Repo, kind: Kind) -> Result<Vec<PathBuf>> {
    cmake::check()?;
    let source = repo.source()?;
    let dir = repo.target().join(kind.folder());
    let tree = dir.join("llama.cpp");
    let ours = match kind {
        Kind::Stock | Kind::PortableStock => {
            source::copy(&source.dir, &tree)?;
            if kind == Kind::Stock
                && let Err(error) = ui::provide(repo.root(), &source.dir, &tree, &repo.pages())
            {
                eprintln!("warning: llama-server is built without its chat page: {error:#}");
            }
            None
        }
        Kind::Tools | Kind::Qemu | Kind::PortableTools | Kind::Address | Kind::Thread => {
            Series::read(repo.patches().root())?.apply(&source.dir, &tree)?;
            Some(env!("CARGO_PKG_VERSION"))
        }
    };
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve `{}`", dir.display()))?;
    let commit = commit_label(&source, ours);
    let built = Build {
        dir: &dir,
        commit: &commit,
        targets: kind.programs(),
        args: kind.args(),
    }
    .run()?;
    Ok(kind
        .programs()
        .iter()
        .map(|name| built.join("bin").join(name))
        .collect())
}
