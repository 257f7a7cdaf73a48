//! Parses a patch file: subject, reason, files and hunks. Does not apply it.

use anyhow::{Context as _, Result};

/// A patch in mail format, as `git format-patch` writes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// Without the prefix `[PATCH]`.
    pub subject: String,
    /// Between the headers and the diff, trailers included.
    pub body: String,
    pub hunks: Vec<Hunk>,
    pub touched: Vec<Touched>,
}

/// A file of the diff, by its `index` line.
#[derive(Debug, PartialEq, Eq)]
pub struct Touched {
    pub path: String,
    /// Blob id that the patch was made against.
    pub before: String,
}

/// One `@@` of the diff.
#[derive(Debug, PartialEq, Eq)]
pub struct Hunk {
    pub path: String,
    /// Lines added and removed, context not counted.
    pub changed: usize,
}

impl Mail {
    pub fn parse(text: &str) -> Result<Self> {
        let (head, rest) = text
            .split_once("\n\n")
            .context("no empty line after the headers")?;
        let start = rest.find("\ndiff --git ").map_or(rest.len(), |at| at + 1);
        let (message, diff) = rest.split_at(start);
        // Git writes this line above a list of files. Without the list, git omits the line.
        let message = message.trim_end().strip_suffix("\n---").unwrap_or(message);
        let (touched, hunks) = read_diff(diff);
        Ok(Self {
            subject: subject(head).context("no `Subject:` header")?,
            body: message.trim().to_owned(),
            hunks,
            touched,
        })
    }

    /// The value of a `Key: value` line in the last paragraph.
    pub fn trailer(&self, key: &str) -> Option<&str> {
        let last = self.body.rsplit("\n\n").next()?;
        last.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    }

    /// The body without the trailers: the reason.
    pub fn reason(&self) -> &str {
        let last = self.body.rsplit("\n\n").next().unwrap_or_default();
        let is_trailers = !last.is_empty()
            && last
                .lines()
                .all(|line| is_trailer(line) || line.starts_with(' '));
        if is_trailers {
            self.body[..self.body.len() - last.len()].trim()
        } else {
            self.body.trim()
        }
    }
}

fn is_trailer(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(name, value)| {
        !value.trim().is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    })
}

fn subject(head: &str) -> Option<String> {
    let mut lines = head
        .lines()
        .skip_while(|line| !line.starts_with("Subject:"));
    let mut subject = lines.next()?.strip_prefix("Subject:")?.trim().to_owned();
    // A long header continues in lines that begin with white space.
    for more in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        subject.push(' ');
        subject.push_str(more.trim());
    }
    let bare = subject
        .strip_prefix("[PATCH")
        .and_then(|rest| rest.split_once(']'));
    Some(
        bare.map_or(subject.as_str(), |(_, rest)| rest)
            .trim()
            .to_owned(),
    )
}

fn read_diff(diff: &str) -> (Vec<Touched>, Vec<Hunk>) {
    let mut touched = Vec::new();
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut path = String::new();
    // A removed line may look like a header ("--- a/x"), so the counts of the `@@` line decide where a hunk ends.
    let (mut old_left, mut new_left) = (0usize, 0usize);
    for line in diff.lines() {
        if old_left + new_left > 0 {
            let changed = match line.as_bytes().first() {
                Some(b'+') => (0, 1),
                Some(b'-') => (1, 0),
                Some(b'\\') => continue,
                _ => {
                    old_left = old_left.saturating_sub(1);
                    new_left = new_left.saturating_sub(1);
                    continue;
                }
            };
            old_left = old_left.saturating_sub(changed.0);
            new_left = new_left.saturating_sub(changed.1);
            if let Some(hunk) = hunks.last_mut() {
                hunk.changed += 1;
            }
        } else if let Some(name) = line.strip_prefix("diff --git a/") {
            name.split(" b/")
                .next()
                .unwrap_or(name)
                .clone_into(&mut path);
        } else if let Some((before, _)) = line
            .strip_prefix("index ")
            .and_then(|ids| ids.split_once(".."))
        {
            touched.push(Touched {
                path: path.clone(),
                before: before.to_owned(),
            });
        } else if let Some((old, new)) = line.strip_prefix("@@ -").and_then(counts) {
            (old_left, new_left) = (old, new);
            hunks.push(Hunk {
                path: path.clone(),
                changed: 0,
            });
        }
    }
    (touched, hunks)
}

/// `12,3 +14,5 @@ …` → (3, 5); a missing count is one.
fn counts(range: &str) -> Option<(usize, usize)> {
    let (old, rest) = range.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let count = |side: &str| {
        side.split_once(',')
            .map_or(Some(1), |(_, n)| n.parse().ok())
    };
    Some((count(old)?, count(new)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "From 0 Mon Sep 17 00:00:00 2001
From: A <a@b.c>
Date: Fri, 20 Nov 2026 10:00:00 +0000
Subject: [PATCH] llama : a subject that is so long that
 it takes two lines

Because.

Forwarded: no
Drop-When: never
---

diff --git a/src/x.cpp b/src/x.cpp
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/src/x.cpp
+++ b/src/x.cpp
@@ -1,3 +1,3 @@
 one
--- two
+++ two
 three
@@ -10 +10,2 @@ int f() {
 ten
+eleven
";

    #[test]
    fn a_folded_subject_is_read_as_one_line() {
        let mail = Mail::parse(PATCH).unwrap();
        assert_eq!(
            mail.subject,
            "llama : a subject that is so long that it takes two lines"
        );
    }

    #[test]
    fn trailers_are_not_part_of_the_reason() {
        let mail = Mail::parse(PATCH).unwrap();
        assert_eq!(mail.reason(), "Because.");
        assert_eq!(mail.trailer("Drop-When"), Some("never"));
        assert_eq!(mail.trailer("Reason"), None);
    }

    #[test]
    fn a_removed_line_that_looks_like_a_header_is_counted_as_a_line() {
        let changed: Vec<usize> = Mail::parse(PATCH)
            .unwrap()
            .hunks
            .iter()
            .map(|h| h.changed)
            .collect();
        assert_eq!(changed, [2, 1]);
    }
}
