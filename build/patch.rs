//! The series: applied in memory, proved by blob ids.
//!
//! Each patch carries, for each file that it touches, git's id of the content before and after (`--full-index`).
//! Both are checked, so it does not matter where the source came from, and a hunk cannot land in a wrong place.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha1::{Digest, Sha1};

use super::hex;
use super::tree::{self, Overlay};

const REFRESH: &str = "hint: the pin moved; run \"cargo xtask patches refresh\"";
const EXPORT: &str = "hint: a patch is written by \"cargo xtask patches export\", not by hand";

/// `patches/`: patches in the order of `patches/series`, and the files of `patches/files/`.
/// The default, an empty series, is stock.
#[derive(Debug, Default)]
pub struct Series {
    pub patches: Vec<Patch>,
    /// New files, by their place in the tree.
    pub files: Overlay,
}

/// One mail as `git format-patch` writes it.
#[derive(Debug)]
pub struct Patch {
    pub name: String,
    pub mail: Vec<u8>,
}

/// What one patch does to one file.
struct Change<'a> {
    path: PathBuf,
    before: &'a str,
    after: &'a str,
    diff: &'a [u8],
}

impl Series {
    /// Reads `dir/series`, the patches that it names, and `dir/files/`.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut series = Self::default();
        for name in names(&dir.join("series"))? {
            let path = dir.join(&name);
            let mail = fs::read(&path).with_context(|| format!("cannot read {}, named in patches/series", path.display()))?;
            series.patches.push(Patch { name, mail });
        }
        let files = dir.join("files");
        if files.is_dir() {
            for path in tree::files(&files)? {
                let content = fs::read(files.join(&path))?;
                series.files.insert(path, content);
            }
        }
        Ok(series)
    }

    /// What the series makes of `pristine`: every file that differs from it.
    pub fn overlay(&self, pristine: &Path) -> Result<Overlay> {
        let mut overlay = Overlay::new();
        for (path, content) in &self.files {
            ensure!(
                !pristine.join(path).exists(),
                "patches/files/{0} would replace upstream's {0}\nhint: change an upstream file with a patch",
                path.display()
            );
            overlay.insert(path.clone(), content.clone());
        }
        for patch in &self.patches {
            patch.apply(pristine, &mut overlay).with_context(|| format!("patch {}", patch.name))?;
        }
        Ok(overlay)
    }

    /// Makes `tree` equal to `pristine` with the series applied; returns the paths that had to be touched.
    pub fn apply(&self, pristine: &Path, tree: &Path) -> Result<Vec<PathBuf>> {
        tree::sync(pristine, &self.overlay(pristine)?, tree)
    }
}

impl Patch {
    fn apply(&self, pristine: &Path, overlay: &mut Overlay) -> Result<()> {
        for change in changes(&self.mail)? {
            let path = change.path.display();
            let before = match overlay.remove(&change.path) {
                Some(content) => Some(content),
                None if pristine.join(&change.path).exists() => Some(fs::read(pristine.join(&change.path))?),
                None => None,
            };
            let found = before.as_deref().map_or(NONE.to_owned(), blob_id);
            ensure!(
                found == change.before,
                "{path} {}, expected {}\n{REFRESH}",
                if found == NONE { "is missing".to_owned() } else { format!("is {}", short(&found)) },
                if change.before == NONE { "no such file".to_owned() } else { short(change.before) },
            );
            let after = diffy::Patch::from_bytes(change.diff)
                .map_err(|e| anyhow!(e))
                .and_then(|diff| Ok(diffy::apply_bytes(before.as_deref().unwrap_or_default(), &diff)?))
                .map_err(|e| anyhow!("{path}: {e}\n{EXPORT}"))?;
            let id = blob_id(&after);
            ensure!(id == change.after, "{path} becomes {}, expected {}\n{EXPORT}", short(&id), short(change.after));
            overlay.insert(change.path, after);
        }
        Ok(())
    }
}

/// The names in a series file: one a line, `#` starts a comment.
fn names(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The files that a mail changes.
fn changes(mail: &[u8]) -> Result<Vec<Change<'_>>> {
    const START: &[u8] = b"\ndiff --git ";
    let starts: Vec<usize> = mail.windows(START.len()).enumerate().filter(|(_, w)| *w == START).map(|(at, _)| at + 1).collect();
    ensure!(!starts.is_empty(), "holds no diff\n{EXPORT}");
    let ends = starts.iter().skip(1).copied().chain([mail.len()]);
    starts.iter().zip(ends).map(|(&start, end)| change(&mail[start..end])).collect()
}

/// One section of a mail: extended header, `---`, `+++`, hunks.
fn change(section: &[u8]) -> Result<Change<'_>> {
    let at = section.windows(5).position(|w| w == b"\n--- ");
    let (header, diff) = section.split_at(at.map_or(section.len(), |at| at + 1));
    let header = std::str::from_utf8(header).context("the header of a diff is not UTF-8")?;
    let title = header.lines().next().unwrap_or_default();
    let value = |key: &str| header.lines().find_map(|line| line.strip_prefix(key));
    for unwanted in ["rename ", "copy ", "deleted file ", "GIT binary patch", "Binary files "] {
        if value(unwanted).is_some() {
            bail!("`{title}`: a {}does not belong into the series\n{EXPORT}", if unwanted.contains("inary") { "binary " } else { unwanted });
        }
    }
    let (before, after) = value("index ")
        .and_then(|ids| ids.split(' ').next()?.split_once(".."))
        .filter(|(before, after)| before.len() == 40 && after.len() == 40)
        .with_context(|| format!("`{title}` carries no full blob ids\n{EXPORT}"))?;
    // The mail ends with an empty line that is no part of the last hunk.
    let diff = diff.strip_suffix(b"\n\n").map_or(diff, |cut| &diff[..=cut.len()]);
    let path = diff
        .split(|&b| b == b'\n')
        .find_map(|line| line.strip_prefix(b"+++ b/"))
        .and_then(|path| std::str::from_utf8(path).ok())
        .map(PathBuf::from)
        .filter(|path| path.components().all(|part| matches!(part, Component::Normal(_))))
        .with_context(|| format!("`{title}` names no file in the tree\n{EXPORT}"))?;
    Ok(Change { path, before, after, diff })
}

/// Git's name for "no such file".
const NONE: &str = "0000000000000000000000000000000000000000";

/// Git's id of a file's content.
pub fn blob_id(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn short(id: &str) -> String {
    id.chars().take(10).chain(['…']).collect()
}
