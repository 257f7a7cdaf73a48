//! What the image, the tarball and the Debian package share: the programs, the licences, and the time that all files get.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::hint::Hint as _;
use crate::licences;
use crate::repo::Repo;
use crate::run::output;
use crate::sbom;

pub const NAME: &str = "llama-hugepages";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
pub const PROGRAMS: [&str; 2] = ["llama-server", "hugepages"];
/// Only a build with the feature `rpc` contains this program.
pub const WORKER: &str = "ggml-rpc-server";

/// The library for `LD_PRELOAD`.
pub const PRELOAD: &str = "libhugepages_preload.so";

/// The names of the programs in a folder.
pub fn programs(dir: &Path) -> Vec<&'static str> {
    let mut names = PROGRAMS.to_vec();
    if dir.join(WORKER).exists() {
        names.push(WORKER);
    }
    names
}

/// llama.cpp's shared libraries beside the programs, sorted. Without the feature `cpu-variants`, a build has none.
pub fn libraries(programs: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(programs).with_context(|| format!("cannot read `{}`", programs.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension() == Some("so".as_ref()) && path != programs.join(PRELOAD) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Where a release comes from.
pub struct Origin {
    /// Seconds since 1970. `SOURCE_DATE_EPOCH` overrides the time of the commit.
    pub time: u64,
    pub revision: Option<String>,
}

impl Origin {
    pub fn of(repo: &Repo) -> Result<Self> {
        let commit = commit(repo, "%ct %H");
        let commit = commit.as_deref().and_then(|line| line.split_once(' '));
        let given = env::var("SOURCE_DATE_EPOCH").ok();
        let time = given.as_deref().or(commit.map(|(time, _)| time));
        let time = time
            .and_then(|time| time.parse().ok())
            .context("neither a commit nor SOURCE_DATE_EPOCH gives the time of the files")
            .hint("set SOURCE_DATE_EPOCH to seconds since 1970")?;
        Ok(Self {
            time,
            revision: commit.map(|(_, revision)| revision.to_owned()),
        })
    }
}

/// The last commit, in a format of `git log`.
pub fn commit(repo: &Repo, format: &str) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(repo.root());
    let line = output(git.args(["log", "-1", &format!("--format={format}")])).ok()?;
    Some(line.trim().to_owned())
}

/// Writes the licences of all parts, and the SBOM.
pub fn write_notices(repo: &Repo, dir: &Path) -> Result<()> {
    for name in ["LICENSE", "NOTICE"] {
        copy(&repo.root().join(name), dir, 0o644)?;
    }
    let sbom = sbom::write(repo)?;
    write(
        &dir.join("licences-of-crates.txt"),
        &licences::of_crates(repo, &sbom)?,
    )?;
    copy(&sbom, dir, 0o644)
}

/// An empty folder, with the same mode on all machines.
pub fn empty(dir: &Path) -> Result<()> {
    remove(dir)?;
    make(dir)
}

/// Creates a folder and its parents.
pub fn make(dir: &Path) -> Result<()> {
    let created: Vec<_> = dir.ancestors().take_while(|it| !it.exists()).collect();
    fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    for dir in created {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Copies a file into a folder.
pub fn copy(path: &Path, dir: &Path, mode: u32) -> Result<()> {
    let name = path.file_name().context("no file name")?;
    copy_as(path, &dir.join(name), mode)
}

pub fn copy_as(path: &Path, target: &Path, mode: u32) -> Result<()> {
    target.parent().map_or(Ok(()), make)?;
    fs::copy(path, target).with_context(|| format!("cannot copy `{}`", path.display()))?;
    Ok(fs::set_permissions(target, Permissions::from_mode(mode))?)
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    path.parent().map_or(Ok(()), make)?;
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o644))?)
}

pub fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    Ok(())
}

/// All files, folders and links below a folder, sorted.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let entry = entry?;
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes symbols, which a release does not need.
pub fn strip(path: &Path) -> Result<()> {
    let status = Command::new("strip")
        .args(["--strip-unneeded", "--remove-section=.comment"])
        .arg(path)
        .status()
        .context("cannot run `strip`")
        .hint("apt-get install binutils")?;
    ensure!(status.success(), "`strip` failed: {status}");
    Ok(())
}
