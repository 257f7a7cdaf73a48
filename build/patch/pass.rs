//! Applies one patch after the other to the files of a source, in memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::blob_id::{NONE, blob_id, short};
use super::mail::{Change, EXPORT, changes};
use super::place::{Placed, place};
use super::{Accepts, Overlay, Patch, Series, is_below};

pub(super) const REFRESH: &str = "hint: the pin moved; run \"cargo xtask patches refresh\"";

/// One hunk of the series, and its result in a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Hunk {
    pub patch: String,
    pub path: PathBuf,
    /// The line in the pin, as the patch states it.
    pub line: usize,
    /// The function that git names, and the lines as in a diff.
    pub text: String,
    pub placed: Placed,
}

/// The files of a source while the patches change them.
pub(super) struct Pass<'a> {
    source: &'a Path,
    omitted: &'a BTreeSet<PathBuf>,
    pub overlay: Overlay,
    /// The same files of the pin, as far as they are known.
    pinned: Overlay,
    /// Files that are not those of the pin.
    pub others: BTreeSet<PathBuf>,
}

impl<'a> Pass<'a> {
    pub fn new(series: &'a Series, source: &'a Path) -> Result<Self> {
        for path in series.files.keys() {
            ensure!(
                !source.join(path).exists(),
                "patches/files/{0} would replace upstream's {0}\nhint: change an upstream file with a patch",
                path.display()
            );
        }
        Ok(Self {
            source,
            omitted: &series.omitted,
            overlay: series.files.clone(),
            pinned: Overlay::new(),
            others: BTreeSet::new(),
        })
    }

    /// Applies one patch, and skips hunks that conflict.
    pub fn patch(&mut self, patch: &Patch, accepts: &Accepts) -> Result<Vec<Hunk>> {
        let mut hunks = Vec::new();
        for change in changes(&patch.mail)? {
            if is_below(&change.path, self.omitted) {
                continue;
            }
            let diff = diffy::Patch::from_bytes(change.diff)
                .map_err(|e| anyhow!("{}: {e}\n{EXPORT}", change.path.display()))?;
            let before = read(&self.overlay, self.source, &change.path)?;
            let is_pin = before.as_deref().map_or(NONE.to_owned(), blob_id) == change.before;
            let results = match accepts {
                Accepts::Others(pins) if !is_pin => self.other(&change, before, &diff, pins)?,
                _ => {
                    let after = exact(&change, before.as_deref(), &diff)?;
                    self.pinned.insert(change.path.clone(), after.clone());
                    self.overlay.insert(change.path.clone(), after);
                    vec![Placed::Applies(0); diff.hunks().len()]
                }
            };
            hunks.extend(diff.hunks().iter().zip(results).map(|(hunk, placed)| Hunk {
                patch: patch.name.clone(),
                path: change.path.clone(),
                line: hunk.old_range().start(),
                text: text(hunk),
                placed,
            }));
        }
        Ok(hunks)
    }

    /// Changes a file that is not the file of the pin.
    fn other(
        &mut self,
        change: &Change<'_>,
        before: Option<Vec<u8>>,
        diff: &diffy::Patch<'_, [u8]>,
        pins: &[PathBuf],
    ) -> Result<Vec<Placed>> {
        let pinned = self.pinned(change, pins)?;
        if let Some(pinned) = &pinned {
            let after = exact(change, Some(pinned), diff)?;
            self.pinned.insert(change.path.clone(), after);
        }
        let Some(before) = before else {
            return Ok(vec![Placed::FileMissing; diff.hunks().len()]);
        };
        if change.before == NONE {
            return Ok(vec![Placed::Conflicts; diff.hunks().len()]);
        }
        let (after, results) = place(&before, pinned.as_deref(), diff)?;
        self.others.insert(change.path.clone());
        self.overlay.insert(change.path.clone(), after);
        Ok(results)
    }

    /// The file that `change` was made for.
    fn pinned(&self, change: &Change<'_>, pins: &[PathBuf]) -> Result<Option<Vec<u8>>> {
        for pin in pins {
            let content = read(&self.pinned, pin, &change.path)?;
            if content
                .as_deref()
                .is_some_and(|it| blob_id(it) == change.before)
            {
                return Ok(content);
            }
        }
        Ok(None)
    }
}

/// The file in `overlay`, or in the tree below it.
fn read(overlay: &Overlay, tree: &Path, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = tree.join(path);
    match overlay.get(path) {
        Some(content) => Ok(Some(content.clone())),
        None if !file.exists() => Ok(None),
        None => fs::read(&file)
            .map(Some)
            .with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Applies a change to the file that it was made for, and checks both ids.
fn exact(
    change: &Change<'_>,
    before: Option<&[u8]>,
    diff: &diffy::Patch<'_, [u8]>,
) -> Result<Vec<u8>> {
    let path = change.path.display();
    let found = before.map_or(NONE.to_owned(), blob_id);
    ensure!(
        found == change.before,
        "{path} {}, expected {}\n{REFRESH}",
        if found == NONE {
            "is missing".to_owned()
        } else {
            format!("is {}", short(&found))
        },
        if change.before == NONE {
            "no such file".to_owned()
        } else {
            short(change.before)
        },
    );
    let after = diffy::apply_bytes(before.unwrap_or_default(), diff)
        .map_err(|e| anyhow!("{path}: {e}\n{EXPORT}"))?;
    let id = blob_id(&after);
    ensure!(
        id == change.after,
        "{path} becomes {}, expected {}\n{EXPORT}",
        short(&id),
        short(change.after)
    );
    Ok(after)
}

/// The function that git names, and the lines of a hunk as in a diff.
fn text(hunk: &diffy::Hunk<'_, [u8]>) -> String {
    let lossy = |bytes| String::from_utf8_lossy(bytes);
    let mut text = lossy(hunk.function_context().unwrap_or_default()).into_owned();
    for line in hunk.lines() {
        let (sign, line) = match line {
            diffy::Line::Context(line) => ("\n ", line),
            diffy::Line::Delete(line) => ("\n-", line),
            diffy::Line::Insert(line) => ("\n+", line),
        };
        text.extend([sign, lossy(line).trim_end_matches('\n')]);
    }
    text
}
