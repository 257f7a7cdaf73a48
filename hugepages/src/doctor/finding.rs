//! The result of a check.

use serde::Serialize;

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As expected.
    Ok,
    /// Information.
    Note,
    /// `--hugepages` works, but worse than possible.
    Warning,
    /// `--hugepages` fails now.
    Problem,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Name of the check, stable over versions.
    pub id: &'static str,
    /// Severity.
    pub severity: Severity,
    /// The finding.
    pub found: String,
    /// Its meaning; may be empty.
    pub meaning: String,
    /// The command that helps.
    pub command: Option<String>,
}

impl Finding {
    fn new(severity: Severity, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            // Set by `examine`.
            id: "",
            severity,
            found: found.into(),
            meaning: meaning.into(),
            command: None,
        }
    }

    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, found, "")
    }

    pub(super) fn note(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Note, found, meaning)
    }

    pub(super) fn warning(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Warning, found, meaning)
    }

    pub(super) fn problem(found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Problem, found, meaning)
    }

    pub(super) fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }
}
