//! The programs under test, and the programs that they are compared with.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::target_dir;

/// Our server. `LLAMA_HUGEPAGES_TEST_SERVER` names another one, such as an installed one.
pub fn server() -> PathBuf {
    env::var_os("LLAMA_HUGEPAGES_TEST_SERVER")
        .map_or_else(|| env!("CARGO_BIN_EXE_llama-server").into(), PathBuf::from)
}

/// The tool. Cargo builds it beside the server, because its own package has a test too.
pub fn hugepages() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_llama-server")).with_file_name("hugepages")
}

/// The library for `LD_PRELOAD`. Cargo builds it beside the server with the workspace, but not for a test alone.
pub fn preload_library() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_llama-server")).with_file_name("libhugepages_preload.so")
}

/// A program of upstream's pinned source, without patches.
pub fn stock(name: &str) -> Result<PathBuf, String> {
    built("stock", name, "stock")
}

/// The same program with our patches.
pub fn patched(name: &str) -> Result<PathBuf, String> {
    built("tools", name, "tools")
}

/// llama-completion, built for Valgrind or with a sanitizer.
pub fn instrumented(how: &str) -> Result<PathBuf, String> {
    built(how, "llama-completion", "instrumented")
}

/// Upstream's server with the backends Vulkan and BLAS, without patches.
pub fn stock_with_backends() -> Result<PathBuf, String> {
    built("backends-stock", "llama-server", "backends")
}

/// Our server with the features `blas` and `vulkan`.
pub fn with_backends() -> Result<PathBuf, String> {
    let path = target_dir().join("backends/release/llama-server");
    let missing = || {
        format!(
            "{} is missing: `cargo xtask backends` builds it",
            path.display()
        )
    };
    path.is_file().then(|| path.clone()).ok_or_else(missing)
}

/// The folder of the programs for every CPU, which packages and the image contain.
pub fn portable() -> Result<PathBuf, String> {
    let dir = target_dir().join("portable/release");
    let is_built = ["llama-server", "hugepages", "ggml-rpc-server"]
        .iter()
        .all(|name| dir.join(name).is_file());
    let missing = || format!("{} is incomplete: `make portable` builds it", dir.display());
    is_built.then(|| dir.clone()).ok_or_else(missing)
}

/// The sample program of llama-cpp-2, with our copy of its -sys crate.
pub fn with_llama_cpp_2() -> Result<PathBuf, String> {
    let path = target_dir().join("llama-cpp-2/release/generate");
    let missing = || format!("{} is missing: `make bindings` builds it", path.display());
    path.is_file().then(|| path.clone()).ok_or_else(missing)
}

/// Checks that a program of the system is installed.
pub fn found(name: &str) -> Result<(), String> {
    let run = Command::new(name)
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    run.map(drop)
        .map_err(|error| format!("{name} cannot be run: {error}"))
}

/// Copies a program or a script into `dir`, where every user can run it.
///
/// Another process writes the copy. If this one had it open for writing while a parallel test starts a program, that program would
/// inherit the open file for a moment, and the kernel would refuse to run the copy (ETXTBSY).
pub fn copy_to(dir: &Path, program: &Path) -> PathBuf {
    let copy = dir.join(program.file_name().expect("a file"));
    run(Command::new("install")
        .arg("--mode=755")
        .args([program, &copy]))
    .expect("the disk has space");
    copy
}

/// Runs a program of the system to its end. An error is the program's output.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{command:?}: {said}"))
}

fn built(folder: &str, name: &str, what: &str) -> Result<PathBuf, String> {
    let path = target_dir().join(folder).join("build/bin").join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} is missing: `cargo xtask {what}` builds it",
            path.display()
        ))
    }
}
