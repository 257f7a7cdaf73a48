//! The git work tree for edits of the series, and the protection of its changes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use crate::git::Git;
use crate::hint::Hint as _;

/// Tag of the pristine source.
pub const UPSTREAM: &str = "upstream";
/// Tag of the state that `patches/` holds.
pub const EXPORTED: &str = "exported";
/// Branch with one commit a patch.
pub const SERIES: &str = "series";

/// A repository made by `import`.
pub struct WorkTree {
    pub git: Git,
}

impl WorkTree {
    /// The work tree in `dir`, if one was imported there.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(git) = Git::open(dir)? else {
            return Ok(None);
        };
        let is_ours = git.resolve(UPSTREAM)?.is_some() && git.dir().join(".git/xtask").is_file();
        Ok(is_ours.then_some(Self { git }))
    }

    /// An empty or reusable work tree in `dir`. Fails if changes are not exported, unless `force`.
    pub fn prepare(dir: &Path, force: bool) -> Result<Self> {
        let Some(tree) = Self::open(dir)? else {
            if dir.join(".git").exists() {
                return Err(anyhow!(
                    "`{}` is a git repository that was not made by an import",
                    dir.display()
                ))
                .hint("use another directory");
            }
            let is_occupied = dir.exists() && std::fs::read_dir(dir)?.next().is_some();
            if is_occupied && !force {
                return Err(anyhow!(
                    "`{}` is not empty and was not made by an import",
                    dir.display()
                ))
                .hint("name another folder, or pass --force to use this one");
            }
            return Ok(Self {
                git: Git::init(dir)?,
            });
        };
        if let Some(what) = tree.unexported()?
            && !force
        {
            return Err(anyhow!("`{}` has {what}", dir.display())).hint(
                "finish your work and run \"cargo xtask patches export\", or drop it with --force",
            );
        }
        if tree.busy() {
            // Only one of the two is in progress, so the other command fails without harm.
            tree.git.attempt(["am", "--quit"])?;
            tree.git.attempt(["rebase", "--quit"])?;
        }
        Ok(tree)
    }

    /// Describes the changes that a new import would lose.
    pub fn unexported(&self) -> Result<Option<String>> {
        if self.busy() {
            return Ok(Some("an unfinished `git am` or `git rebase`".to_owned()));
        }
        let dirty = self.dirty()?;
        if let Some(first) = dirty.first() {
            return Ok(Some(match dirty.len() {
                1 => format!("a change that is not committed: {first}"),
                n => format!("{n} changes that are not committed: {first}, …"),
            }));
        }
        let head = self.git.resolve("HEAD")?;
        if head != self.git.resolve(EXPORTED)? {
            return Ok(Some("commits that were not exported".to_owned()));
        }
        Ok(None)
    }

    /// Whether a `git am` or `git rebase` is in progress.
    pub fn busy(&self) -> bool {
        ["rebase-apply", "rebase-merge"]
            .iter()
            .any(|state| self.git.dir().join(".git").join(state).exists())
    }

    /// Paths with uncommitted changes.
    pub fn dirty(&self) -> Result<Vec<String>> {
        let status = self.git.text([
            "status",
            "--porcelain",
            "--untracked-files=all",
            "--no-renames",
        ])?;
        Ok(status
            .lines()
            .filter_map(|line| line.get(3..))
            .map(str::to_owned)
            .collect())
    }

    /// Stores the digest of `patches/`, so that an export never overwrites newer files.
    pub fn remember(&self, digest: &str) -> Result<()> {
        let path = self.note();
        std::fs::write(&path, digest).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// The digest from `remember`.
    pub fn remembered(&self) -> Result<String> {
        let path = self.note();
        std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
    }

    /// Marks all commits as exported.
    pub fn mark_exported(&self) -> Result<()> {
        self.git.run(["tag", "--force", EXPORTED, "HEAD"])
    }

    fn note(&self) -> PathBuf {
        self.git.dir().join(".git/xtask")
    }
}
