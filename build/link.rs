//! The libraries to link, in order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::cargo;

/// Upstream's archives. A linker reads each archive once, so an archive precedes the archives that it needs.
const ARCHIVES: &[(&str, &str)] = &[
    ("llama-server-impl", "tools/server"),
    ("server-context", "tools/server"),
    ("llama-ui", "tools/ui"),
    ("cpp-httplib", "vendor/cpp-httplib"),
    ("mtmd", "tools/mtmd"),
    ("llama-common", "common"),
    ("llama-common-base", "common"),
    ("vendor-hash", "vendor/hash"),
    ("llama", "src"),
    // Before the backends, because its registry refers to each backend.
    ("ggml", "ggml/src"),
];

/// Backends that `LLAMA_HUGEPAGES_CMAKE_ARGS` can enable: archive, directory, and the entries of CMake's cache that name
/// its libraries. A backend is linked if its archive exists.
const BACKENDS: &[(&str, &str, &[&str])] = &[
    ("ggml-rpc", "ggml/src/ggml-rpc", &["RDMA_LIB"]),
    (
        "ggml-cuda",
        "ggml/src/ggml-cuda",
        &[
            "CUDA_cudart_LIBRARY",
            "CUDA_cublas_LIBRARY",
            "CUDA_cuda_driver_LIBRARY",
            "NCCL_LIBRARY",
        ],
    ),
    ("ggml-vulkan", "ggml/src/ggml-vulkan", &["Vulkan_LIBRARY"]),
    ("ggml-rpc", "ggml/src/ggml-rpc", &[]),
    (
        "ggml-blas",
        "ggml/src/ggml-blas",
        &["BLAS_openblas_LIBRARY", "BLAS_blas_LIBRARY"],
    ),
];

/// After the backends, which call into both.
const BASE: &[(&str, &str)] = &[("ggml-cpu", "ggml/src"), ("ggml-base", "ggml/src")];

/// Prints the link directives for the CMake build.
pub fn emit(build: &Path) -> Result<()> {
    let cache = Cache::read(&build.join("CMakeCache.txt"))?;
    for (name, dir) in ARCHIVES {
        archive(build, name, dir)?;
    }
    let backends = BACKENDS
        .iter()
        .filter(|(name, dir, _)| path(build, name, dir).is_file());
    for (name, dir, needs) in backends {
        archive(build, name, dir)?;
        cache.link(needs);
    }
    for (name, dir) in BASE {
        archive(build, name, dir)?;
    }
    if cache.is_on("OPENSSL_VERSION_SUPPORTED") {
        // ssl calls crypto.
        cache.link(&["OPENSSL_SSL_LIBRARY", "OPENSSL_CRYPTO_LIBRARY"]);
    }
    if cache.is_on("GGML_OPENMP_ENABLED") {
        cache.link(&["OpenMP_gomp_LIBRARY", "OpenMP_omp_LIBRARY"]);
    }
    cargo::link_shared("stdc++");
    Ok(())
}

fn archive(build: &Path, name: &str, dir: &str) -> Result<()> {
    let path = path(build, name, dir);
    ensure!(
        path.is_file(),
        "the CMake build did not create `{}`",
        path.display()
    );
    cargo::link_search(&build.join(dir));
    cargo::link_static(name);
    Ok(())
}

fn path(build: &Path, name: &str, dir: &str) -> PathBuf {
    build.join(dir).join(format!("lib{name}.a"))
}

/// `CMakeCache.txt`: the options and results of CMake.
struct Cache(HashMap<String, String>);

impl Cache {
    fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// Lines `NAME:TYPE=VALUE`; comments start with `#` or `//`.
    fn parse(text: &str) -> Self {
        let entries = text.lines().filter(|line| !line.starts_with(['#', '/']));
        Self(
            entries
                .filter_map(|line| line.split_once('='))
                .filter_map(|(key, value)| {
                    Some((key.split_once(':')?.0.to_owned(), value.to_owned()))
                })
                .collect(),
        )
    }

    fn is_on(&self, name: &str) -> bool {
        self.0
            .get(name)
            .is_some_and(|value| matches!(value.as_str(), "1" | "ON" | "TRUE"))
    }

    /// Links the libraries that CMake found. Each entry contains the path of one library.
    fn link(&self, entries: &[&str]) {
        let paths = entries.iter().filter_map(|name| self.0.get(*name));
        for path in paths.map(Path::new).filter(|path| path.is_file()) {
            if let (Some(dir), Some(name)) = (path.parent(), library_name(path)) {
                cargo::link_search(dir);
                cargo::link_shared(name);
            }
        }
    }
}

/// `/usr/lib/libssl.so.3` is `ssl` to the linker.
fn library_name(path: &Path) -> Option<&str> {
    path.file_name()?
        .to_str()?
        .strip_prefix("lib")?
        .split('.')
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_values_by_name() {
        let cache = Cache::parse(
            "// a comment=1\n#x:y=1\nA:BOOL=ON\nB:FILEPATH=/usr/lib/libb.so=x\nC:INTERNAL=\n",
        );
        assert!(cache.is_on("A"));
        assert!(!cache.is_on("C") && !cache.is_on("D"));
        assert_eq!(cache.0["B"], "/usr/lib/libb.so=x");
    }

    #[test]
    fn a_library_is_named_without_its_version() {
        assert_eq!(library_name(Path::new("/usr/lib/libssl.so.3")), Some("ssl"));
        assert_eq!(library_name(Path::new("/usr/lib/plugin.so")), None);
    }
}
