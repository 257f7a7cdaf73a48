//! The pin: `vendor/llama.cpp.lock`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::carrier::Carrier;

/// The pinned llama.cpp, and its carrier package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub registry: Registry,
    /// Name of the carrier package.
    pub package: String,
    /// Version of the carrier package.
    pub version: String,
    /// SHA-256 of the carrier's source archive, in hex.
    pub sha256: String,
    /// Path of llama.cpp below the archive's single top directory.
    pub subdir: PathBuf,
    /// The upstream commit in the carrier, 40 hex digits.
    pub commit: String,
    /// Date of that commit.
    pub date: String,
}

/// The program that downloads the carrier package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    Pip,
    Cargo,
}

impl Registry {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pip => "pip",
            Self::Cargo => "cargo",
        }
    }
}

impl Lock {
    pub fn carrier(&self) -> Carrier<'_> {
        Carrier {
            registry: self.registry,
            package: &self.package,
            version: &self.version,
            sha256: Some(&self.sha256),
        }
    }
}

/// Reads and checks the lock file.
pub fn read(path: &Path) -> Result<Lock> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => bail!(
            "{} does not exist\nhint: `cargo vendor` without a directory removes this file; after `git checkout vendor`, use `cargo vendor crates`",
            path.display()
        ),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    parse(&text).with_context(|| format!("{} is not a valid lock file", path.display()))
}

fn parse(text: &str) -> Result<Lock> {
    let lock: Lock = toml::from_str(text)?;
    ensure!(
        is_hex(&lock.sha256, 64),
        "sha256 is not 64 hex digits: `{}`",
        lock.sha256
    );
    ensure!(
        is_hex(&lock.commit, 40),
        "commit is not 40 hex digits: `{}`",
        lock.commit
    );
    Ok(lock)
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_lock_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vendor/llama.cpp.lock");
        assert_eq!(read(&path).unwrap().subdir, Path::new("vendor/llama.cpp"));
    }

    #[test]
    fn a_short_hash_is_refused() {
        let text = "registry='pip'\npackage='p'\nversion='1'\nsha256='abc'\nsubdir='s'\ncommit='c'\ndate='d'";
        assert!(format!("{:#}", parse(text).unwrap_err()).contains("64 hex digits"));
    }
}
