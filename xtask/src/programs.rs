//! Upstream's programs: without the series (stock), with the series (tools), for any CPU (qemu), for Valgrind and sanitizers
//! (instrumented), and without the series but with other backends (backends).

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::cmake::{self, Build, commit_label};
use crate::build::patch::Series;
use crate::build::{source, ui};
use crate::qemu::recorder;
use crate::repo::Repo;

/// The programs for comparisons, measurements and tests.
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

/// These programs, and the generator of tiny models of each architecture.
const TOOLS: &[&str] = &{
    let mut all = ["test-llama-archs"; PROGRAMS.len() + 1];
    let mut i = 0;
    while i < PROGRAMS.len() {
        all[i] = PROGRAMS[i];
        i += 1;
    }
    all
};

/// The program for the emulated machine, and for the comparison with other backends.
const SERVER: &[&str] = &["llama-server"];

/// The programs that load a model and infer.
const INSTRUMENTED_PROGRAMS: &[&str] = &["llama-completion"];

/// The source of the programs, and the machine that runs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stock,
    Tools,
    /// Like tools, but for any CPU, because an emulated CPU has fewer features. The program records which weights its threads read.
    Qemu,
    /// Like stock and tools, but for any CPU, because Valgrind does not know all instructions of this CPU.
    PortableStock,
    PortableTools,
    /// Like tools, with sanitizers.
    Address,
    Thread,
    /// Like stock, with the backends that need no GPU: Vulkan has a driver for the CPU.
    BackendsStock,
}

/// The programs with instrumentation.
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
            Self::BackendsStock => "backends-stock",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Stock => PROGRAMS,
            Self::Tools => TOOLS,
            Self::Qemu | Self::BackendsStock => SERVER,
            Self::PortableStock | Self::PortableTools | Self::Address | Self::Thread => {
                INSTRUMENTED_PROGRAMS
            }
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            // `ggml-rpc-server` runs a part of a model, and is a second device for tests without a GPU.
            Self::Stock => &["-DGGML_RPC=ON"],
            Self::Tools => &["-DGGML_RPC=ON", "-DLLAMA_BUILD_TESTS=ON"],
            // Upstream then uses AVX2 at most, and QEMU emulates AVX2 since 7.2.
            Self::Qemu | Self::PortableStock | Self::PortableTools => &["-DGGML_NATIVE=OFF"],
            Self::Address => &[
                "-DLLAMA_SANITIZE_ADDRESS=ON",
                "-DLLAMA_SANITIZE_UNDEFINED=ON",
            ],
            // ThreadSanitizer does not see how OpenMP synchronizes its threads.
            Self::Thread => &["-DLLAMA_SANITIZE_THREAD=ON", "-DGGML_OPENMP=OFF"],
            // The options of our features `blas` and `vulkan`.
            Self::BackendsStock => &[
                "-DGGML_VULKAN=ON",
                "-DGGML_BLAS=ON",
                "-DGGML_BLAS_VENDOR=OpenBLAS",
            ],
        }
    }
}

/// Builds with the flags of our own build, in a folder of `target/`, and returns the paths of the binaries.
pub fn build(repo: &Repo, kind: Kind) -> Result<Vec<PathBuf>> {
    cmake::check()?;
    let source = repo.source()?;
    let dir = repo.target().join(kind.folder());
    let tree = dir.join("llama.cpp");
    let ours = match kind {
        Kind::Stock | Kind::PortableStock | Kind::BackendsStock => {
            source::copy(&source.dir, &tree)?;
            if kind == Kind::Stock
                && let Err(error) = ui::provide(repo.root(), &source.dir, &tree, &repo.pages())
            {
                eprintln!("warning: llama-server is built without its chat page: {error:#}");
            }
            None
        }
        Kind::Tools | Kind::Qemu | Kind::PortableTools | Kind::Address | Kind::Thread => {
            let series = Series::read(repo.patches().root())?;
            series.apply(&source.dir, &tree, &source.accepts)?;
            Some(series)
        }
    };
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve `{}`", dir.display()))?;
    let ours = ours
        .as_ref()
        .map(|series| (env!("CARGO_PKG_VERSION"), series));
    let commit = commit_label(&source, ours);
    let recording = match kind {
        Kind::Qemu => recorder::build(&dir.join("recorder"))?,
        _ => Vec::new(),
    };
    let args: Vec<_> = (kind.args().iter().copied())
        .chain(recording.iter().map(String::as_str))
        .collect();
    let built = Build {
        dir: &dir,
        commit: &commit,
        targets: kind.programs(),
        args: &args,
    }
    .run()?;
    Ok(kind
        .programs()
        .iter()
        .map(|name| built.join("bin").join(name))
        .collect())
}
