//! The patch series: files in this repository, and commits in a git work tree for edits.
//!
//! ```text
//! patches/series, 00NN-*.patch ──import──▶  upstream ─ files ─ patch 1 ─ patch 2   (one commit each)
//! patches/files/**             ◀──export──  tag      (ours)    branch `series`
//! ```
//! Patches change upstream's files. All other files are ours, in `patches/files`. So the path of a file decides where its
//! change belongs.

pub mod attempt;
pub mod check;
pub mod contracts;
pub mod export;
pub mod import;
pub mod mail;
pub mod refresh;
pub mod work_tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::patch::blob_id::blob_id;
use mail::Mail;

/// The folder `patches/`.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn series_file(&self) -> PathBuf {
        self.root.join("series")
    }

    pub fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    pub fn patch(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Names in `series`, in order. Without this file the series is empty.
    pub fn series(&self) -> Result<Vec<String>> {
        let path = self.series_file();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        Ok(text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }

    /// Names of the patch files in the folder, sorted.
    pub fn patches(&self) -> Result<Vec<String>> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)
            .with_context(|| format!("cannot read `{}`", self.root.display()))?
        {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if Path::new(&name)
                .extension()
                .is_some_and(|extension| extension == "patch")
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Paths of our own files, relative to the top of the upstream tree, sorted.
    pub fn own_files(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if self.files().exists() {
            walk(&self.files(), "", &mut found)?;
        }
        found.sort();
        Ok(found)
    }

    pub fn mail(&self, name: &str) -> Result<Mail> {
        let path = self.patch(name);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        Mail::parse(&text).with_context(|| format!("cannot read `{}` as a mail", path.display()))
    }

    /// A hash of the series and of our files.
    pub fn digest(&self) -> Result<String> {
        let mut names = vec!["series".to_owned()];
        names.extend(self.patches()?);
        names.extend(self.own_files()?.iter().map(|name| format!("files/{name}")));
        let mut list = String::new();
        for name in names {
            let path = self.root.join(&name);
            if path.exists() {
                let bytes =
                    fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
                list.extend([&blob_id(&bytes), " ", &name, "\n"]);
            }
        }
        Ok(blob_id(list.as_bytes()))
    }
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}
