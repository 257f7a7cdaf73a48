//! Imports `patches/` into a git work tree, one commit for each patch.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Folder;
use super::work_tree::{SERIES, UPSTREAM, WorkTree};
use crate::git::{Git, said};
use crate::hint::Hint as _;

/// With these options `git am` keeps the whole text of a patch, and each import creates the same commit ids.
const AM: &[&str] = &[
    "am",
    "--quiet",
    "--keep-cr",
    "--keep-non-patch",
    "--no-scissors",
    "--no-message-id",
    "--no-signoff",
    "--whitespace=nowarn",
    "--quoted-cr=nowarn",
    "--committer-date-is-author-date",
];

/// Whether `git am` may place hunks by a merge with the file that the patch was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Exact,
    Merge,
}

/// Makes `dir` a work tree of the series on top of `source`.
pub fn import(folder: &Folder, source: &Path, dir: &Path, force: bool) -> Result<WorkTree> {
    let tree = WorkTree::prepare(dir, force)?;
    start(&tree, folder, source)?;
    for name in folder.series()? {
        if let Err(why) = apply(&tree.git, &[folder.patch(&name)], Placement::Exact) {
            tree.git.run(["am", "--abort"])?;
            tree.mark_exported()?;
            return Err(why)
                .with_context(|| format!("patches/{name} does not apply"))
                .hint("the pin moved, or the patch was edited by hand; run \"cargo xtask patches refresh\"");
        }
    }
    tree.mark_exported()?;
    Ok(tree)
}

/// Commits the pristine source and our own files, below the first patch.
pub fn start(tree: &WorkTree, folder: &Folder, source: &Path) -> Result<()> {
    let git = &tree.git;
    let base = git.commit_of_folder(source, "upstream: the pristine source")?;
    git.run(["checkout", "--quiet", "--force", "-B", SERIES, &base])?;
    git.run(["tag", "--force", UPSTREAM, &base])?;
    tree.remember(&folder.digest()?)?;
    add_own_files(git, folder)
}

fn add_own_files(git: &Git, folder: &Folder) -> Result<()> {
    let names = folder.own_files()?;
    if names.is_empty() {
        return Ok(());
    }
    let upstream = git.files(UPSTREAM)?;
    for name in &names {
        if upstream.binary_search(name).is_ok() {
            return Err(anyhow::anyhow!(
                "`patches/files/{name}` has the name of a file of upstream"
            ))
            .hint("rename our file, or change upstream's file in a patch");
        }
        let to = git.dir().join(name);
        let from = folder.files().join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create `{}`", parent.display()))?;
        }
        fs::copy(&from, &to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    }
    // `--force`: upstream's .gitignore may match one of our files.
    let mut args: Vec<OsString> = ["--literal-pathspecs", "add", "--force", "--"]
        .map(OsString::from)
        .into();
    args.extend(names.iter().map(OsString::from));
    git.run(args)?;
    git.run([
        "commit",
        "--quiet",
        "--no-verify",
        "-m",
        "files: sources of our own",
        "-m",
        "Not a patch: export writes these to patches/files.",
    ])
}

/// Applies patches with `git am`. After a failure, the `git am` stays in progress.
pub fn apply(git: &Git, patches: &[impl AsRef<Path>], placement: Placement) -> Result<()> {
    let mut args: Vec<OsString> = AM.iter().map(OsString::from).collect();
    args.push(match placement {
        Placement::Exact => "--no-3way".into(),
        Placement::Merge => "--3way".into(),
    });
    args.push("--".into());
    for patch in patches {
        let path = patch.as_ref();
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        args.push(path.into());
    }
    let out = git.attempt(args)?;
    if !out.status.success() {
        bail!("{}", said(&out));
    }
    Ok(())
}
