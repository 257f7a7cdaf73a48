//! Writes the commits of the git work tree to `patches/`; the same commits give the same bytes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use super::Folder;
use super::work_tree::{UPSTREAM, WorkTree};
use crate::git::{Git, said, split_nul};
use crate::hint::Hint as _;

/// Options for everything that a configuration can change (see also `git`).
const FORMAT_PATCH: &[&str] = &[
    "format-patch",
    "--quiet",
    // Contents of a patch.
    "--no-stat",
    "--patch",
    "--no-signature",
    "--zero-commit",
    "--no-attach",
    "--no-thread",
    "--no-cover-letter",
    "--no-from",
    "--no-to",
    "--no-cc",
    "--no-add-header",
    "--no-signoff",
    "--no-notes",
    "--no-base",
    "--no-encode-email-headers",
    "--no-numbered",
    "--subject-prefix=PATCH",
    // File name of a patch.
    "--start-number=1",
    "--suffix=.patch",
    "--filename-max-length=240",
    // Format of the diff.
    "--full-index",
    "--no-renames",
    "--no-binary",
    "--unified=3",
    "--inter-hunk-context=0",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-relative",
    // `--default-prefix` needs git 2.41.
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "-O/dev/null",
];

/// A file to write: its name and content.
type Content = (String, Vec<u8>);

/// Changes of an export in `patches/`, as relative paths.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub patches: usize,
    pub files: usize,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

/// Writes the commits of `tree` to `folder`: all files, or none.
pub fn export(tree: &WorkTree, folder: &Folder, force: bool) -> Result<Written> {
    if tree.busy() {
        return Err(anyhow!(
            "an unfinished `git am` or `git rebase` in `{}`",
            tree.git.dir().display()
        ))
        .hint("finish it with --continue, or undo it with --abort");
    }
    if let Some(path) = tree.dirty()?.first() {
        return Err(anyhow!(
            "a change that is not committed in `{}`: {path}",
            tree.git.dir().display()
        ))
        .hint("commit it, amend a commit with it, or add \"git commit --fixup COMMIT\"");
    }
    if !force && tree.remembered()? != folder.digest()? {
        return Err(anyhow!("`{}` changed after the import", folder.root().display())).hint(
            "patches were edited or pulled; keep your commits with \"git branch mine\" in the work tree, \
             import with --force and cherry-pick them, or pass --force to export over the changes",
        );
    }
    fold_fixups(&tree.git)?;
    let written = write(&tree.git, folder)?;
    tree.remember(&folder.digest()?)?;
    tree.mark_exported()?;
    Ok(written)
}

/// Folds the commits of `git commit --fixup`, which change a patch in the middle of the series.
fn fold_fixups(git: &Git) -> Result<()> {
    let is_fixup = |subject: &&str| {
        ["fixup! ", "squash! ", "amend! "]
            .iter()
            .any(|mark| subject.starts_with(mark))
    };
    let subjects = git.text(["log", "--format=%s", "upstream..HEAD"])?;
    if subjects.lines().find(is_fixup).is_none() {
        return Ok(());
    }
    let out = git.attempt([
        "rebase",
        "--quiet",
        "--interactive",
        "--autosquash",
        "--committer-date-is-author-date",
        UPSTREAM,
    ])?;
    if !out.status.success() {
        git.attempt(["rebase", "--abort"])?;
        return Err(anyhow!("cannot fold a fixup: {}", said(&out)))
            .hint("fold it by hand in the work tree: \"git rebase -i --autosquash upstream\"");
    }
    let subjects = git.text(["log", "--format=%s", "upstream..HEAD"])?;
    if let Some(subject) = subjects.lines().find(is_fixup) {
        return Err(anyhow!("no commit to fold `{subject}` into"))
            .hint("reword it, or drop it, in the work tree");
    }
    Ok(())
}

fn write(git: &Git, folder: &Folder) -> Result<Written> {
    if let Some(merge) = git
        .text(["log", "--merges", "--format=%h %s", "upstream..HEAD"])?
        .lines()
        .next()
    {
        return Err(anyhow!("the series has a merge: {merge}"))
            .hint("remove the merge with \"git rebase upstream\"");
    }
    let upstream: BTreeSet<String> = git.files(UPSTREAM)?.into_iter().collect();
    let mails = mails(git, &upstream)?;
    let own = own_files(git, &upstream)?;

    let mut written = Written {
        patches: mails.len(),
        files: own.len(),
        ..Written::default()
    };
    let mut series = String::new();
    for (name, mail) in &mails {
        series.extend([name, "\n"]);
        written.put(folder, name, mail)?;
    }
    written.put(folder, "series", series.as_bytes())?;
    for (name, bytes) in &own {
        written.put(folder, &format!("files/{name}"), bytes)?;
    }
    for name in folder.patches()? {
        if !mails.iter().any(|(kept, _)| *kept == name) {
            written.take(folder, &name)?;
        }
    }
    for name in folder.own_files()? {
        if !own.iter().any(|(kept, _)| *kept == name) {
            written.take(folder, &format!("files/{name}"))?;
        }
    }
    Ok(written)
}

/// One mail for each commit that changes an upstream file. `own_files` exports the rest of the commit.
fn mails(git: &Git, upstream: &BTreeSet<String>) -> Result<Vec<Content>> {
    let names = git.bytes([
        "log",
        "--format=",
        "--name-only",
        "--no-renames",
        "-z",
        "upstream..HEAD",
    ])?;
    let touched: BTreeSet<String> = split_nul(&names)?
        .into_iter()
        .filter(|name| upstream.contains(name))
        .collect();
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let out = tempfile::tempdir().context("cannot create a temporary directory")?;
    let mut args: Vec<OsString> = vec!["--literal-pathspecs".into()];
    args.extend(FORMAT_PATCH.iter().map(OsString::from));
    args.extend([
        "--output-directory".into(),
        out.path().into(),
        "upstream..HEAD".into(),
        "--".into(),
    ]);
    args.extend(touched.iter().map(OsString::from));
    git.run(args)?;
    let written = Folder::new(out.path());
    written
        .patches()?
        .into_iter()
        .map(|name| {
            let mail =
                fs::read(written.patch(&name)).context("cannot read the patch that git wrote")?;
            Ok((name, mail))
        })
        .collect()
}

/// Files at the head of the series that upstream does not have.
fn own_files(git: &Git, upstream: &BTreeSet<String>) -> Result<Vec<Content>> {
    let mut own = Vec::new();
    for entry in split_nul(&git.bytes(["ls-tree", "-r", "-z", "--full-tree", "HEAD"])?)? {
        let (about, name) = entry
            .split_once('\t')
            .context("git printed a line that is not a file")?;
        if upstream.contains(name) {
            continue;
        }
        let mode = about.split(' ').next().unwrap_or_default();
        if mode != "100644" {
            bail!("`{name}` has mode {mode}, expected 100644");
        }
        let bytes = git.bytes(["cat-file", "blob", &format!("HEAD:{name}")])?;
        own.push((name.to_owned(), bytes));
    }
    Ok(own)
}

impl Written {
    /// Writes only changed files, because a new file time would cause a rebuild.
    fn put(&mut self, folder: &Folder, name: &str, bytes: &[u8]) -> Result<()> {
        let path = folder.root().join(name);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create `{}`", parent.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
        self.changed.push(name.to_owned());
        Ok(())
    }

    fn take(&mut self, folder: &Folder, name: &str) -> Result<()> {
        let path = folder.root().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        // Git does not store empty folders, so the export removes them.
        let mut parent = path.parent();
        while let Some(dir) = parent.filter(|dir| *dir != folder.root()) {
            if fs::remove_dir(dir).is_err() {
                break;
            }
            parent = dir.parent();
        }
        self.removed.push(name.to_owned());
        Ok(())
    }
}

/// Exports the commits in `tree` to an empty directory, independent of uncommitted changes.
pub fn export_to(tree: &WorkTree, dir: &Path) -> Result<Folder> {
    let folder = Folder::new(dir);
    write(&tree.git, &folder)?;
    Ok(folder)
}
