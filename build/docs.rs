//! Names of the C interfaces for docs.rs, which has no network, so no source of llama.cpp.
//!
//! rustdoc checks no bodies of functions. So it is enough that every name exists which the library takes from `ffi`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::build::cargo;

/// Writes `out/bindings.rs` with a constant or a struct for each name.
pub fn write_names(src: &Path, out: &Path) -> Result<()> {
    cargo::rerun_if_changed(src);
    let mut names = BTreeSet::new();
    find(src, &mut names)?;
    let lines = names.iter().map(|name| {
        if name.starts_with(char::is_uppercase) {
            format!("pub const {name}: u32 = 0;\n")
        } else {
            format!("#[derive(Clone, Copy)]\npub struct {name};\n")
        }
    });
    let text: String = lines.collect();
    fs::write(out.join("bindings.rs"), text).context("cannot write bindings.rs")
}

fn find(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    let cannot_read = || format!("cannot read {}", dir.display());
    for entry in fs::read_dir(dir).with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if path.is_dir() {
            find(&path, names)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            names.extend(names_in(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// The names after `ffi::`, one or a list in braces.
fn names_in(text: &str) -> Vec<String> {
    let uses = text.match_indices("ffi::");
    let ours = uses.filter(|(at, _)| {
        let before = &text[..*at];
        !before.ends_with("std::") && !before.ends_with("unix::")
    });
    let lists = ours.map(|(at, word)| &text[at + word.len()..]);
    let lists = lists.map(|after| match after.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap_or_default(),
        None => after
            .split(|c: char| !is_of_name(c))
            .next()
            .unwrap_or_default(),
    });
    let words = lists.flat_map(|list| list.split(|c: char| !is_of_name(c)));
    words
        .filter(|word| !word.is_empty() && !matches!(*word, "as" | "self"))
        .map(str::to_owned)
        .collect()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
