//! Checks that `patches/` matches an export, that it applies, and that each patch contains its reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Folder;
use super::export::export_to;
use super::import::import;
use super::mail::Mail;
use crate::build::patch::{Accepts, Series};
use crate::hint;

/// A hunk with more changed lines needs a reason (`Hunk: path: why`).
const LONG_HUNK: usize = 10;

/// Findings, one line each, and hints.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub lines: Vec<String>,
    pub hints: BTreeSet<String>,
}

/// Runs all checks; an error means that a check could not run.
pub fn check(folder: &Folder, source: &Path) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.series(folder)?;
    for name in folder.series()? {
        if folder.patch(&name).is_file() {
            findings.reasons(folder, &name);
        }
    }
    // With a missing patch, the other checks have no result.
    if findings.lines.iter().all(|line| !line.contains(MISSING)) {
        let before = findings.lines.len();
        findings.blob_ids(folder, source);
        let does_apply = findings.lines.len() == before;
        findings.round_trip(folder, source, does_apply)?;
    }
    Ok(findings)
}

const MISSING: &str = "is named in series, but does not exist";

impl Findings {
    fn add(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    fn advise(&mut self, hint: &str) {
        self.hints.insert(hint.to_owned());
    }

    fn series(&mut self, folder: &Folder) -> Result<()> {
        let named = folder.series()?;
        let there = folder.patches()?;
        let before = self.lines.len();
        for (at, name) in named.iter().enumerate() {
            if !there.contains(name) {
                self.add(format!("patches/{name}: {MISSING}"));
            }
            if named[..at].contains(name) {
                self.add(format!("patches/series: `{name}` is named twice"));
            }
        }
        for name in there.iter().filter(|name| !named.contains(name)) {
            self.add(format!(
                "patches/{name}: exists, but is not named in series"
            ));
        }
        if self.lines.len() > before {
            self.advise(
                "\"cargo xtask patches export\" writes patches/series and the patch files together",
            );
        }
        Ok(())
    }

    /// Checks the parts of a message that a later reviewer needs.
    fn reasons(&mut self, folder: &Folder, name: &str) {
        let before = self.lines.len();
        match folder.mail(name) {
            Ok(mail) => self.lines.extend(
                missing(&mail)
                    .into_iter()
                    .map(|what| format!("patches/{name}: {what}")),
            ),
            Err(why) => self.add(format!("patches/{name}: {why:#}")),
        }
        if self.lines.len() > before {
            self.advise("import, reword the commit in the work tree, export; docs/patching.md lists the required parts of a patch");
        }
    }

    /// Applies the series like the build.
    fn blob_ids(&mut self, folder: &Folder, source: &Path) {
        let series = if folder.series_file().exists() {
            Series::read(folder.root())
        } else {
            Ok(Series::default())
        };
        if let Err(why) = series.and_then(|series| series.overlay(source, &Accepts::Pin)) {
            self.add_error(&why);
        }
    }

    /// Adds an error as one line, and its hint to the hints.
    fn add_error(&mut self, why: &anyhow::Error) {
        let message = format!("{why:#}");
        let (cause, advice) = hint::split(&message);
        self.add(cause.lines().collect::<Vec<_>>().join("; "));
        if let Some(advice) = advice {
            self.advise(advice);
        }
    }

    fn round_trip(&mut self, folder: &Folder, source: &Path, does_apply: bool) -> Result<()> {
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        let exported = match import(folder, source, &scratch.path().join("tree"), false) {
            Ok(tree) => export_to(&tree, &scratch.path().join("patches"))?,
            // The build's message about the same patch is more exact.
            Err(_) if !does_apply => return Ok(()),
            Err(why) => {
                self.add_error(&why);
                return Ok(());
            }
        };
        let before = self.lines.len();
        let all = |folder: &Folder| -> Result<BTreeSet<String>> {
            let mut names: BTreeSet<String> = folder.patches()?.into_iter().collect();
            names.extend(
                folder
                    .own_files()?
                    .iter()
                    .map(|name| format!("files/{name}")),
            );
            names.insert("series".to_owned());
            Ok(names)
        };
        let (ours, theirs) = (all(folder)?, all(&exported)?);
        for name in ours.union(&theirs) {
            let read = |folder: &Folder| fs::read(folder.root().join(name)).ok();
            match (read(folder), read(&exported)) {
                (Some(ours), Some(theirs)) if ours == theirs => {}
                (Some(ours), Some(theirs)) => {
                    self.add(format!(
                        "patches/{name}: line {} differs from an export",
                        differs_at(&ours, &theirs)
                    ));
                }
                (Some(_), None) => {
                    self.add(format!("patches/{name}: not part of an export"));
                }
                (None, _) if name == "series" && theirs.len() == 1 => {}
                (None, _) => self.add(format!("patches/{name}: missing, an export writes it")),
            }
        }
        if self.lines.len() > before {
            self.advise("edit in the work tree: \"cargo xtask patches import\", commit, \"cargo xtask patches export\"");
        }
        Ok(())
    }
}

/// The number of the first line that differs.
fn differs_at(a: &[u8], b: &[u8]) -> usize {
    let lines = |bytes| <[u8]>::split(bytes, |&byte| byte == b'\n');
    lines(a).zip(lines(b)).take_while(|(a, b)| a == b).count() + 1
}

/// The missing parts of a patch's message.
fn missing(mail: &Mail) -> Vec<String> {
    let mut missing = Vec::new();
    if !is_area_and_summary(&mail.subject) {
        missing.push(format!(
            "the subject is `{}`, not `area : summary`",
            mail.subject
        ));
    }
    if mail.reason().is_empty() {
        missing.push("no reason in the body".to_owned());
    }
    for key in ["Forwarded", "Drop-When"] {
        if mail.trailer(key).is_none() {
            missing.push(format!("no trailer `{key}:`"));
        }
    }
    let mut long: Vec<(&str, usize)> = Vec::new();
    for hunk in mail.hunks.iter().filter(|hunk| hunk.changed > LONG_HUNK) {
        let is_explained = mail.body.lines().any(|line| {
            line.strip_prefix("Hunk:")
                .is_some_and(|rest| rest.trim_start().starts_with(&hunk.path))
        });
        if !is_explained {
            long.push((&hunk.path, hunk.changed));
        }
    }
    for (path, changed) in long {
        missing.push(format!(
            "a hunk of {changed} lines in {path} without `Hunk: {path}: why` in the body"
        ));
    }
    missing
}

fn is_area_and_summary(subject: &str) -> bool {
    subject.split_once(" : ").is_some_and(|(area, summary)| {
        let is_area = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-/, ".contains(c);
        !area.is_empty()
            && area.chars().all(is_area)
            && !summary.trim().is_empty()
            && !summary.ends_with('.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(body: &str, changed: usize) -> Mail {
        Mail {
            subject: "llama : do a thing".to_owned(),
            body: body.to_owned(),
            hunks: vec![crate::patches::mail::Hunk {
                path: "src/a.cpp".to_owned(),
                changed,
            }],
            touched: Vec::new(),
        }
    }

    #[test]
    fn a_hunk_of_eleven_lines_needs_an_explanation() {
        let trailers = "Forwarded: no\nDrop-When: never";
        assert_eq!(
            missing(&mail(&format!("Why.\n\n{trailers}"), 10)),
            Vec::<String>::new()
        );
        assert_eq!(missing(&mail(&format!("Why.\n\n{trailers}"), 11)).len(), 1);
        let explained = format!("Why.\n\nHunk: src/a.cpp: a switch cannot be cut.\n\n{trailers}");
        assert_eq!(missing(&mail(&explained, 11)), Vec::<String>::new());
    }

    #[test]
    fn a_body_of_trailers_only_is_no_reason() {
        assert_eq!(
            missing(&mail("Forwarded: no\nDrop-When: never", 1)),
            ["no reason in the body"]
        );
    }

    #[test]
    fn a_subject_has_an_area_and_a_summary() {
        assert!(is_area_and_summary("ggml, llama : fill blocks"));
        assert!(!is_area_and_summary("fill blocks"));
        assert!(!is_area_and_summary("Ggml : fill blocks"));
        assert!(!is_area_and_summary("ggml : fill blocks."));
    }
}
