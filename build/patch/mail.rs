//! The changes in a mail that `git format-patch` wrote.

use std::path::{Component, PathBuf};

use anyhow::{Context, Result, bail, ensure};

pub(super) const EXPORT: &str =
    "hint: write the patch with \"cargo xtask patches export\", not by hand";

/// The change of one patch to one file.
pub(super) struct Change<'a> {
    pub path: PathBuf,
    pub before: &'a str,
    pub after: &'a str,
    pub diff: &'a [u8],
}

/// The files that a mail changes.
pub(super) fn changes(mail: &[u8]) -> Result<Vec<Change<'_>>> {
    const START: &[u8] = b"\ndiff --git ";
    let starts: Vec<usize> = mail
        .windows(START.len())
        .enumerate()
        .filter(|(_, w)| *w == START)
        .map(|(at, _)| at + 1)
        .collect();
    ensure!(!starts.is_empty(), "contains no diff\n{EXPORT}");
    let ends = starts.iter().skip(1).copied().chain([mail.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| change(&mail[start..end]))
        .collect()
}

/// One section of a mail: extended header, `---`, `+++`, hunks.
fn change(section: &[u8]) -> Result<Change<'_>> {
    let at = section.windows(5).position(|w| w == b"\n--- ");
    let (header, diff) = section.split_at(at.map_or(section.len(), |at| at + 1));
    let header = std::str::from_utf8(header).context("the header of a diff is not UTF-8")?;
    let title = header.lines().next().unwrap_or_default();
    let value = |key: &str| header.lines().find_map(|line| line.strip_prefix(key));
    for unwanted in [
        "rename ",
        "copy ",
        "deleted file ",
        "GIT binary patch",
        "Binary files ",
    ] {
        if value(unwanted).is_some() {
            bail!(
                "`{title}`: a {}is not allowed in the series\n{EXPORT}",
                if unwanted.contains("inary") {
                    "binary "
                } else {
                    unwanted
                }
            );
        }
    }
    let (before, after) = value("index ")
        .and_then(|ids| ids.split(' ').next()?.split_once(".."))
        .filter(|(before, after)| before.len() == 40 && after.len() == 40)
        .with_context(|| format!("`{title}` has no full blob ids\n{EXPORT}"))?;
    // The mail ends with an empty line that does not belong to the last hunk.
    let diff = diff
        .strip_suffix(b"\n\n")
        .map_or(diff, |cut| &diff[..=cut.len()]);
    let path = diff
        .split(|&b| b == b'\n')
        .find_map(|line| line.strip_prefix(b"+++ b/"))
        .and_then(|path| std::str::from_utf8(path).ok())
        .map(PathBuf::from)
        .filter(|path| {
            path.components()
                .all(|part| matches!(part, Component::Normal(_)))
        })
        .with_context(|| format!("`{title}` names no file in the tree\n{EXPORT}"))?;
    Ok(Change {
        path,
        before,
        after,
        diff,
    })
}
