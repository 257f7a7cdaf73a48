//! Places the hunks of a patch in a file that is not the file of the pin.
//!
//! Git merges each hunk if the file of the pin is known. Otherwise a hunk goes where exactly its context is.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use diffy::Line;

/// Result of one hunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The context is unchanged, this number of lines below its place in the pin; a negative number means above.
    Applies(isize),
    /// The context changed, and git merged the hunk.
    Merges,
    /// The file already contains the change.
    Present,
    Conflicts,
    /// The file does not exist.
    FileMissing,
}

impl Placed {
    pub fn fails(self) -> bool {
        matches!(self, Self::Conflicts | Self::FileMissing)
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Applies(0) => write!(f, "applies"),
            Self::Applies(offset) => write!(f, "applies at offset {offset:+}"),
            Self::Merges => write!(f, "merges"),
            Self::Present => write!(f, "is already applied"),
            Self::Conflicts => write!(f, "conflicts"),
            Self::FileMissing => write!(f, "fails: the file is missing"),
        }
    }
}

/// A hunk as lines before and after.
struct Edit<'a> {
    /// Index of the first line in a file that contains all earlier hunks.
    at: usize,
    before: Vec<&'a [u8]>,
    after: Vec<&'a [u8]>,
}

/// Applies the hunks of `diff` to `file` one by one, and skips those that conflict.
///
/// `pinned` is the file that the diff was made for, if it is known.
pub fn place(
    file: &[u8],
    pinned: Option<&[u8]>,
    diff: &diffy::Patch<'_, [u8]>,
) -> Result<(Vec<u8>, Vec<Placed>)> {
    let mut ours = file.to_vec();
    let mut base = pinned.map(<[u8]>::to_vec);
    let mut results = Vec::new();
    let mut skipped: isize = 0;
    for hunk in diff.hunks() {
        let mut edit = Edit::new(hunk);
        let theirs = base.as_deref().map(|base| edit.replace(base, edit.at));
        let merged = match (&base, &theirs) {
            (Some(base), Some(theirs)) => merge(&ours, base, theirs)?,
            _ => Merged::Unknown,
        };
        // A skipped hunk adds no lines above this one.
        edit.at = edit.at.saturating_add_signed(-skipped);
        let (result, after) = edit.choose(&ours, merged);
        match after {
            Some(after) => ours = after,
            None => skipped += edit.after.len().cast_signed() - edit.before.len().cast_signed(),
        }
        results.push(result);
        base = theirs;
    }
    Ok((ours, results))
}

impl<'a> Edit<'a> {
    fn new(hunk: &diffy::Hunk<'a, [u8]>) -> Self {
        let side = |leaves_out: fn(&Line<'a, [u8]>) -> bool| {
            let lines = hunk.lines().iter().filter(|line| !leaves_out(line));
            lines
                .map(|line| match line {
                    Line::Context(text) | Line::Delete(text) | Line::Insert(text) => *text,
                })
                .collect()
        };
        Self {
            at: hunk.new_range().start().saturating_sub(1),
            before: side(|line| matches!(line, Line::Insert(_))),
            after: side(|line| matches!(line, Line::Delete(_))),
        }
    }

    /// The result in `ours`, and the new content; none if the hunk conflicts.
    ///
    /// If git knows the result, it decides, because the same context can also be in a wrong place.
    fn choose(&self, ours: &[u8], merged: Merged) -> (Placed, Option<Vec<u8>>) {
        let by_context = self.find(ours).map(|at| {
            let offset = at.cast_signed() - self.at.cast_signed();
            (Placed::Applies(offset), self.replace(ours, at))
        });
        match (merged, by_context) {
            (Merged::Clean(after), _) if after == ours => (Placed::Present, Some(after)),
            (Merged::Clean(after), Some((applies, same))) if same == after => {
                (applies, Some(after))
            }
            (Merged::Clean(after), _) => (Placed::Merges, Some(after)),
            (Merged::Unknown, Some((applies, after))) => (applies, Some(after)),
            (Merged::Conflict, _) | (Merged::Unknown, None) => (Placed::Conflicts, None),
        }
    }

    /// The nearest place whose lines are exactly those before the change.
    fn find(&self, file: &[u8]) -> Option<usize> {
        let file: Vec<&[u8]> = lines(file).collect();
        let last = file.len().checked_sub(self.before.len())?;
        (0..=last)
            .filter(|&at| file[at..at + self.before.len()] == self.before)
            .min_by_key(|at| at.abs_diff(self.at))
    }

    fn replace(&self, file: &[u8], at: usize) -> Vec<u8> {
        let above = lines(file).take(at);
        let below = lines(file).skip(at + self.before.len());
        above
            .chain(self.after.iter().copied())
            .chain(below)
            .flatten()
            .copied()
            .collect()
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split_inclusive(|&byte| byte == b'\n')
}

/// Result of git for one hunk.
enum Merged {
    Clean(Vec<u8>),
    Conflict,
    /// The pin is unknown, or git is not installed.
    Unknown,
}

/// Merges the change from `base` to `theirs` into `ours`.
fn merge(ours: &[u8], base: &[u8], theirs: &[u8]) -> Result<Merged> {
    let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
    for (name, content) in [("ours", ours), ("base", base), ("theirs", theirs)] {
        fs::write(dir.path().join(name), content).context("cannot write a temporary file")?;
    }
    // A repository that the environment names must not matter.
    let variables = std::env::vars_os().map(|(name, _)| name);
    let mut command = Command::new("git");
    for name in variables.filter(|name| is_of_git(name)) {
        command.env_remove(name);
    }
    let output = command
        .args(["merge-file", "--quiet", "-p", "ours", "base", "theirs"])
        .current_dir(dir.path())
        .output();
    let Ok(output) = output else {
        return Ok(Merged::Unknown);
    };
    // The exit code is the number of conflicts, 127 at most.
    match output.status.code() {
        Some(0) => Ok(Merged::Clean(output.stdout)),
        Some(1..=127) => Ok(Merged::Conflict),
        _ => bail!(
            "git merge-file: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

fn is_of_git(variable: &OsStr) -> bool {
    variable.as_encoded_bytes().starts_with(b"GIT_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines 1 to 20; the diff inserts a line after the tenth, and replaces the fifteenth.
    fn pin() -> String {
        let lines: Vec<String> = (1..=20).map(|n| format!("line {n}\n")).collect();
        lines.concat()
    }

    const DIFF: &str = "--- a/f\n+++ b/f\n@@ -8,6 +8,7 @@ f()\n line 8\n line 9\n line 10\n+new\n line 11\n line 12\n line 13\n\
                        @@ -14,3 +15,3 @@\n line 14\n-line 15\n+fifteen\n line 16\n";

    const BOTH: [(&str, &str); 2] = [("line 10\n", "line 10\nnew\n"), ("line 15\n", "fifteen\n")];

    fn replaced(text: &str, changes: &[(&str, &str)]) -> String {
        changes.iter().fold(text.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        })
    }

    /// Changes the pin, places the hunks with and without the pin, and checks the content with it.
    fn results(changes: &[(&str, &str)], patched: &[(&str, &str)]) -> [Vec<Placed>; 2] {
        let ours = replaced(&pin(), changes);
        let diff = diffy::Patch::from_bytes(DIFF.as_bytes()).unwrap();
        let (after, merged) = place(ours.as_bytes(), Some(pin().as_bytes()), &diff).unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), replaced(&ours, patched));
        let (_, by_context) = place(ours.as_bytes(), None, &diff).unwrap();
        [merged, by_context]
    }

    #[test]
    fn a_hunk_applies_at_its_place_or_at_an_offset() {
        let [merged, by_context] = results(&[], &BOTH);
        assert_eq!(merged, [Placed::Applies(0), Placed::Applies(0)]);
        assert_eq!(merged, by_context);

        let [merged, by_context] = results(&[("line 1\n", "0\n0\nline 1\n")], &BOTH);
        assert_eq!(merged, [Placed::Applies(2), Placed::Applies(2)]);
        assert_eq!(merged, by_context);

        let [merged, by_context] = results(&[("line 1\n", "")], &BOTH);
        assert_eq!(merged, [Placed::Applies(-1), Placed::Applies(-1)]);
        assert_eq!(merged, by_context);
    }

    #[test]
    fn a_changed_context_line_needs_the_pin() {
        let [merged, by_context] = results(&[("line 8\n", "eight\n")], &BOTH);
        assert_eq!(merged, [Placed::Merges, Placed::Applies(0)]);
        assert_eq!(by_context, [Placed::Conflicts, Placed::Applies(0)]);
    }

    #[test]
    fn a_changed_line_of_the_hunk_conflicts_and_the_other_hunk_applies() {
        let [merged, by_context] = results(&[("line 15\n", "15\n")], &BOTH[..1]);
        assert_eq!(merged, [Placed::Applies(0), Placed::Conflicts]);
        assert_eq!(merged, by_context);

        let changed = [("line 10\nline 11\n", "10\n11\n")];
        let [merged, by_context] = results(&changed, &BOTH[1..]);
        assert_eq!(merged, [Placed::Conflicts, Placed::Applies(0)]);
        assert_eq!(merged, by_context);
    }

    #[test]
    fn a_change_that_upstream_made_too_is_already_applied() {
        let [merged, by_context] = results(&BOTH[1..], &BOTH[..1]);
        assert_eq!(merged, [Placed::Applies(0), Placed::Present]);
        assert_eq!(by_context, [Placed::Applies(0), Placed::Conflicts]);
    }

    /// The nearest place of the context can be the wrong one.
    #[test]
    fn the_pin_decides_if_the_context_is_in_another_place() {
        let copy = "line 8\nline 9\nline 10\nline 11\nline 12\nline 13\n";
        let changes = [("line 8\n", "eight\n"), ("line 20\n", copy)];
        let [merged, by_context] = results(&changes, &BOTH);
        assert_eq!(merged, [Placed::Merges, Placed::Applies(0)]);
        assert_eq!(by_context[0], Placed::Applies(12));

        let changes = [
            ("line 14\n", "fourteen\n"),
            ("line 20\n", "line 14\nline 15\nline 16\n"),
        ];
        let [merged, by_context] = results(&changes, &BOTH[..1]);
        assert_eq!(merged, [Placed::Applies(0), Placed::Conflicts]);
        assert_eq!(by_context, [Placed::Applies(0), Placed::Applies(6)]);
    }
}
