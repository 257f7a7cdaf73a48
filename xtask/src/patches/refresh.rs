//! Moves the series to the source of a new pin, with a merge where lines moved.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Folder;
use super::export::{Written, export};
use super::import::{Placement, apply, import, start};
use super::work_tree::WorkTree;
use crate::build::patch::blob_id::blob_id;
use crate::git::Git;

/// Result of a refresh.
pub enum Refreshed {
    /// All patches apply, and `patches/` contains the result.
    Done(Written),
    /// A patch conflicts, and a person must resolve the conflict in the work tree.
    Conflict {
        files: Vec<String>,
        subject: String,
        left: usize,
    },
}

/// Puts the series on `source`, and exports it if no patch conflicts.
///
/// `older` are sources that the series may have been made for. Git needs the right one for merges.
pub fn refresh(
    folder: &Folder,
    source: &Path,
    older: &[PathBuf],
    dir: &Path,
    force: bool,
) -> Result<Refreshed> {
    let tree = WorkTree::prepare(dir, force)?;
    start(&tree, folder, source)?;
    learn_blobs(&tree.git, folder, older)?;
    let names = folder.series()?;
    let patches: Vec<PathBuf> = names.iter().map(|name| folder.patch(name)).collect();
    // One call for all patches: `git am --continue` then continues with the next patch.
    if patches.is_empty() || apply(&tree.git, &patches, Placement::Merge).is_ok() {
        return Ok(Refreshed::Done(export(&tree, folder, false)?));
    }
    if !tree.busy() {
        anyhow::bail!("git did not start to apply the series");
    }
    let at = number(tree.git.dir(), "next")?;
    let name = names
        .get(at.saturating_sub(1))
        .context("git stopped at a patch that is not in the series")?;
    let unmerged = tree.git.text(["diff", "--name-only", "--diff-filter=U"])?;
    let mail = folder.mail(name)?;
    let mut files: Vec<String> = unmerged.lines().map(str::to_owned).collect();
    if files.is_empty() {
        files = mail.touched.into_iter().map(|file| file.path).collect();
    }
    Ok(Refreshed::Conflict {
        files,
        subject: mail.subject,
        left: names.len() - at,
    })
}

fn number(work_tree: &Path, which: &str) -> Result<usize> {
    let path = work_tree.join(".git/rebase-apply").join(which);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("`{}` is not a number", path.display()))
}

/// Gives `git` the files that the patches were made for, from the first of `older` that contains them all.
///
/// A three-way merge needs the content before each patch, so the series is applied there once.
pub fn learn_blobs(git: &Git, folder: &Folder, older: &[PathBuf]) -> Result<bool> {
    for source in older {
        if !was_made_for(folder, source)? {
            continue;
        }
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        let before = import(folder, source, scratch.path(), false)?;
        let mut fetch = vec!["fetch".into(), "--quiet".into(), "--no-tags".into()];
        fetch.push(before.git.dir().as_os_str().to_owned());
        fetch.push("+series:refs/patches/before".into());
        git.run(fetch)?;
        return Ok(true);
    }
    Ok(false)
}

/// Whether each file that the series touches has, in `source`, the id that its first patch expects.
fn was_made_for(folder: &Folder, source: &Path) -> Result<bool> {
    let mut seen = std::collections::BTreeSet::new();
    for name in folder.series()? {
        for file in folder.mail(&name)?.touched {
            if !seen.insert(file.path.clone()) {
                continue;
            }
            match std::fs::read(source.join(&file.path)) {
                Ok(bytes) if blob_id(&bytes) == file.before => {}
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}
