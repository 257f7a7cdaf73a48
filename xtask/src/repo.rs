//! Paths in this repository.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::build::lock::{self, Lock};
use crate::build::source::{self, Source};
use crate::build::ui;
use crate::patches::Folder;

#[derive(Debug)]
pub struct Repo {
    root: PathBuf,
}

impl Repo {
    pub fn new(root: Option<PathBuf>) -> Self {
        let ours = || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .unwrap_or(Path::new("."))
                .to_owned()
        };
        Self {
            root: root.unwrap_or_else(ours),
        }
    }

    pub fn lock_file(&self) -> PathBuf {
        self.root.join("vendor/llama.cpp.lock")
    }

    pub fn lock(&self) -> Result<Lock> {
        lock::read(&self.lock_file())
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finished chat pages.
    pub fn pages(&self) -> PathBuf {
        ui::cache_dir(&self.root)
    }

    pub fn cache(&self) -> PathBuf {
        source::cache_dir(&self.root)
    }

    pub fn patches(&self) -> Folder {
        Folder::new(self.root.join("patches"))
    }

    /// The source of a build, downloaded if needed.
    pub fn source(&self) -> Result<Source> {
        source::prepare(&self.root, &self.lock()?, &self.cache())
    }

    /// Sources that the series may have been made for: all unpacked sources here.
    pub fn sources(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if let Some(source) = source::locate(&self.root, &self.lock()?)? {
            found.push(source.dir);
        }
        if let Ok(entries) = std::fs::read_dir(self.cache()) {
            for entry in entries {
                let entry = entry?;
                let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                if !is_hidden && entry.file_type()?.is_dir() {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Cargo's target folder, which also holds work trees and upstream's programs.
    pub fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }

    /// The programs of a build.
    pub fn programs(&self) -> PathBuf {
        self.target().join("release")
    }

    pub fn work_tree(&self) -> PathBuf {
        self.target().join("patches/llama.cpp")
    }
}
