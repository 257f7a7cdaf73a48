//! Programs of others that contain an unmodified llama.cpp. The tests run them under the preload library.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::repo::Repo;
use crate::run::run;

/// Versions of the npm package `node-llama-cpp`, whose llama.cpp is prebuilt: a new one, and one of 2025.
const NODE: [&str; 2] = ["3.22.1", "3.12.4"];

/// Older versions of llama-cpp-python: the release before the pinned one, and one of 2025. pip builds their llama.cpp.
const PYTHON: [&str; 2] = ["0.3.35", "0.3.16"];

/// No test needs the tools for images.
const PYTHON_OPTIONS: &str = "-DLLAVA_BUILD=OFF";

/// Installs all programs into folders of `target/other-programs/`, and returns the folders. Keeps complete folders.
///
/// A program that cannot be installed does not stop the others. The error names all of them.
pub fn install(repo: &Repo) -> Result<Vec<PathBuf>> {
    let dir = repo.target().join("other-programs");
    let lock = repo.lock()?;
    let pinned = (lock.package == "llama-cpp-python").then_some(lock.version);
    let node = NODE.map(|version| (format!("node-{version}"), version.to_owned()));
    let python = PYTHON.map(str::to_owned).into_iter().chain(pinned);
    let python = python.map(|version| (format!("python-{version}"), version));
    let mut folders = Vec::new();
    let mut errors = Vec::new();
    for (name, version) in node.into_iter().chain(python) {
        let folder = dir.join(&name);
        let complete = dir.join(format!("{name}.complete"));
        if !complete.exists() {
            let installed = if name.starts_with("node") {
                install_node(&folder, &version)
            } else {
                install_python(&folder, &version)
            };
            if let Err(error) = installed {
                errors.push(format!("{name}: {error:#}"));
                continue;
            }
            fs::write(&complete, "")
                .with_context(|| format!("cannot write `{}`", complete.display()))?;
        }
        folders.push(folder);
    }
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(folders)
}

fn install_node(folder: &Path, version: &str) -> Result<()> {
    let platform = match ARCH {
        "x86_64" => "linux-x64",
        "aarch64" => "linux-arm64",
        other => bail!("the package has no llama.cpp for {other}"),
    };
    make(folder)?;
    run(Command::new("npm")
        .args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--silent",
        ])
        // The builds for GPUs.
        .arg("--omit=optional")
        .arg("--prefix")
        .arg(folder)
        .arg(format!("node-llama-cpp@{version}"))
        .arg(format!("@node-llama-cpp/{platform}@{version}")))
}

fn install_python(folder: &Path, version: &str) -> Result<()> {
    make(folder)?;
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder))?;
    run(Command::new(folder.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-binary", "llama-cpp-python"])
        .arg(format!("llama-cpp-python=={version}"))
        .env("CMAKE_ARGS", PYTHON_OPTIONS))
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))
}
