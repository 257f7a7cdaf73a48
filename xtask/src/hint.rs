//! One `hint:` line, the last of a message, for a failure that the user can fix.

use anyhow::{Result, anyhow};

/// Separator between cause and hint.
const MARK: &str = "\nhint: ";

/// Adds a hint to an error, unless the error already has a hint closer to the cause.
pub trait Hint<T> {
    fn hint(self, hint: &str) -> Result<T>;
}

impl<T> Hint<T> for Result<T> {
    fn hint(self, hint: &str) -> Self {
        self.map_err(|cause| {
            let text = format!("{cause:#}");
            if text.contains(MARK) {
                cause
            } else {
                anyhow!("{text}{MARK}{hint}")
            }
        })
    }
}

/// A message as its cause and its advice.
pub fn split(message: &str) -> (&str, Option<&str>) {
    match message.split_once(MARK) {
        Some((cause, hint)) => (cause, Some(hint)),
        None => (message, None),
    }
}
