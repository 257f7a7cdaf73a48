//! Tries the series on another upstream, in a temporary work tree, before a change of the pin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Folder;
use super::import::{Placement, apply, start};
use super::refresh::learn_blobs;
use super::work_tree::WorkTree;

/// Result of one patch.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applies unchanged.
    Applies,
    /// Applies with a merge; a refresh would write it again.
    Merges,
    /// Does not apply to these files.
    Fails(Vec<String>),
}

/// Tries every patch on `source`, and skips patches that fail.
pub fn attempt(
    folder: &Folder,
    source: &Path,
    older: &[PathBuf],
) -> Result<Vec<(String, Outcome)>> {
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let tree = WorkTree::prepare(scratch.path(), false)?;
    let git = &tree.git;
    start(&tree, folder, source)?;
    learn_blobs(git, folder, older)?;
    let mut outcomes = Vec::new();
    for name in folder.series()? {
        let patch = [folder.patch(&name)];
        let outcome = if apply(git, &patch, Placement::Exact).is_ok() {
            Outcome::Applies
        } else {
            git.attempt(["am", "--abort"])?;
            if apply(git, &patch, Placement::Merge).is_ok() {
                Outcome::Merges
            } else {
                let unmerged = git.text(["diff", "--name-only", "--diff-filter=U"])?;
                git.attempt(["am", "--abort"])?;
                let mut files: Vec<String> = unmerged.lines().map(str::to_owned).collect();
                if files.is_empty() {
                    files = folder
                        .mail(&name)?
                        .touched
                        .into_iter()
                        .map(|file| file.path)
                        .collect();
                }
                Outcome::Fails(files)
            }
        };
        outcomes.push((name, outcome));
    }
    Ok(outcomes)
}
