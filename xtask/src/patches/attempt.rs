//! Tries the series on another source, hunk by hunk, and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::contracts::{self, Contract};
use crate::build::patch::place::Placed;
use crate::build::patch::{Hunk, Series};
use crate::build::source;
use crate::repo::Repo;

/// All hunks of the series, with their results in a source.
pub struct Attempt {
    hunks: Vec<Hunk>,
    contracts: Vec<Contract>,
}

/// Tries the series on `source`: a tree, or the archive of a package that contains one.
pub fn attempt(repo: &Repo, source: &Path) -> Result<Attempt> {
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let unpacked;
    let tree = if source.is_dir() {
        ensure!(
            source.join("include/llama.h").is_file(),
            "`{}` is not a llama.cpp tree: `include/llama.h` is missing",
            source.display()
        );
        source
    } else {
        unpacked = scratch.path().join("tree");
        source::unpack(source, &source::subdir(source)?, &unpacked)
            .with_context(|| format!("cannot unpack `{}`", source.display()))?;
        &unpacked
    };
    attempt_with(repo, tree, repo.sources()?)
}

/// Tries the series on `tree`. `pins` are sources that the series may have been made for.
pub fn attempt_with(repo: &Repo, tree: &Path, pins: Vec<PathBuf>) -> Result<Attempt> {
    let folder = repo.patches();
    let series = if folder.series_file().exists() {
        Series::read(folder.root())?
    } else {
        Series::default()
    };
    Attempt::of(&series, repo, tree, pins)
}

impl Attempt {
    /// Tries `series` on `tree`.
    pub fn of(series: &Series, repo: &Repo, tree: &Path, pins: Vec<PathBuf>) -> Result<Self> {
        // Without the list, no hunk has a contract.
        let list = fs::read_to_string(repo.root().join("docs/patching.md")).unwrap_or_default();
        Ok(Self {
            hunks: series.attempt(tree, pins)?,
            contracts: contracts::parse(&list),
        })
    }

    /// One line for each hunk.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.lines_if(|_| true)
    }

    /// One line for each hunk with one of these results.
    pub fn lines_if(&self, is: fn(Placed) -> bool) -> impl Iterator<Item = String> {
        let hunks = self.hunks.iter().filter(move |hunk| is(hunk.placed));
        hunks.map(|hunk| {
            let number = hunk.patch.split('-').next().unwrap_or_default();
            let depends: Vec<_> = self
                .contracts
                .iter()
                .filter(|contract| contract.covers(hunk))
                .map(|contract| contract.name.as_str())
                .collect();
            let depends = if depends.is_empty() {
                String::new()
            } else {
                format!(" [{}]", depends.join(", "))
            };
            format!(
                "{number} {}:{}: {}{depends}",
                hunk.path.display(),
                hunk.line,
                hunk.placed
            )
        })
    }

    /// The number of hunks with each result.
    pub fn summary(&self) -> String {
        let count = |is: fn(Placed) -> bool| self.hunks.iter().filter(|it| is(it.placed)).count();
        let counts = [
            (count(|it| it == Placed::Applies(0)), "apply at their place"),
            (
                count(|it| matches!(it, Placed::Applies(offset) if offset != 0)),
                "apply at an offset",
            ),
            (count(|it| it == Placed::Merges), "merge"),
            (count(|it| it == Placed::Present), "are already applied"),
            (count(|it| it == Placed::Conflicts), "conflict"),
            (count(|it| it == Placed::FileMissing), "lack their file"),
        ];
        let counts: Vec<_> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        format!("{} hunks: {}", self.hunks.len(), counts.join(", "))
    }

    pub fn fails(&self) -> bool {
        self.hunks.iter().any(|hunk| hunk.placed.fails())
    }

    pub fn is_empty(&self) -> bool {
        self.hunks.is_empty()
    }
}
