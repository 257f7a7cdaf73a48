//! Collects all messages of the project in one file, so that a review shows each change of words.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::snapshot;

/// Folders whose sources contain messages for users.
const SOURCES: [&str; 6] = [
    "build",
    "src",
    "hugepages/src",
    "preload/src",
    "xtask/src",
    "patches/files",
];
/// A literal with fewer words is a name, a path or a format.
const WORDS: usize = 3;

#[test]
fn the_list_of_all_messages_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lines = Vec::new();
    for source in SOURCES {
        for file in files(&root.join(source)) {
            let text = fs::read_to_string(&file).expect("the file is text");
            let is_rust = file.extension().is_some_and(|extension| extension == "rs");
            // Unit tests are at the end of a file.
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let messages: Vec<String> = literals(text, is_rust)
                .into_iter()
                .filter(|literal| is_message(literal))
                .collect();
            if !messages.is_empty() {
                let name = file.strip_prefix(root).expect("the file is below the root");
                lines.push(name.display().to_string());
                lines.extend(messages.iter().map(|message| format!("  {message}")));
            }
        }
    }
    snapshot::assert("messages.txt", &format!("{}\n", lines.join("\n")));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let is_source = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("rs" | "cpp" | "h"))
    };
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(files(&path));
        } else if is_source(&path) {
            found.push(path);
        }
    }
    found
}

/// String literals outside comments, with their escapes as written.
fn literals(text: &str, is_rust: bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = text;
    // Whether only white space follows the last literal, because C++ joins such literals.
    let mut is_joined = false;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest = rest.split_once("\"'").map_or("", |(_, after)| after);
        } else if is_rust && rest.starts_with("r#\"") {
            rest = rest.split_once("\"#").map_or("", |(_, after)| after);
        } else if c == '"' {
            let end = end_of_literal(&rest[1..]);
            let literal = &rest[1..=end];
            match found.last_mut().filter(|_| is_joined) {
                Some(before) => before.push_str(literal),
                None => found.push(literal.to_owned()),
            }
            is_joined = !is_rust;
            rest = rest.get(end + 2..).unwrap_or("");
        } else {
            is_joined &= c.is_whitespace();
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// Length of the text before the closing quote.
fn end_of_literal(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        if c == '"' && !is_escaped {
            return at;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

fn is_message(literal: &str) -> bool {
    let is_word = |word: &&str| {
        let letters = word.trim_matches(|c: char| !c.is_alphabetic());
        letters.len() > 1
            && letters
                .chars()
                .all(|c| c.is_alphabetic() || c == '\'' || c == '-')
    };
    literal.split_whitespace().filter(is_word).count() >= WORDS
}

#[test]
fn literals_are_found_whatever_surrounds_them() {
    let rust = "// \"no\"\nlet a = \"one \\\"two\\\" three\"; let b = '\"'; f(\"x\", \"y\")";
    assert_eq!(literals(rust, true), ["one \\\"two\\\" three", "x", "y"]);
    let cpp = "log(\"a b \"\n    \"c\", /* \"no\" */ \"d\");";
    assert_eq!(literals(cpp, false), ["a b c", "d"]);
}
