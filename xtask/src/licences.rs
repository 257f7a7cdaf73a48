//! The licences of the Rust crates in the programs, with their texts from the sources of the crates.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::release::{NAME, VERSION};
use crate::repo::Repo;
use crate::run::output;

/// How the names of files with licences begin.
const NAMES: [&str; 5] = ["licen", "copying", "copyright", "notice", "unlicense"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    /// `None` for the crates of this repository.
    source: Option<String>,
}

/// A list of the crates of an SBOM with their licences, then the texts. Equal texts appear once.
pub fn of_crates(repo: &Repo, sbom: &Path) -> Result<String> {
    let sbom: Value = serde_json::from_slice(
        &fs::read(sbom).with_context(|| format!("cannot read `{}`", sbom.display()))?,
    )?;
    // The SBOM lists the crates of all systems. Cargo downloads only those of this one.
    let metadata = output(
        Command::new("cargo")
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", &format!("{ARCH}-unknown-linux-gnu")])
            .arg("--manifest-path")
            .arg(repo.root().join("Cargo.toml")),
    )?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    text(metadata.packages, &listed(&sbom)?)
}

/// Names and versions in an SBOM.
fn listed(sbom: &Value) -> Result<BTreeSet<(&str, &str)>> {
    let components = sbom["components"].as_array().context("no components")?;
    let known = components
        .iter()
        .filter_map(|it| Some((it["name"].as_str()?, it["version"].as_str()?)));
    Ok(known.collect())
}

fn text(mut packages: Vec<Package>, listed: &BTreeSet<(&str, &str)>) -> Result<String> {
    packages.retain(|it| {
        it.source.is_some() && listed.contains(&(it.name.as_str(), it.version.as_str()))
    });
    packages.sort();
    ensure!(!packages.is_empty(), "the SBOM lists no crate");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut all = format!("The Rust crates in the programs of {NAME} {VERSION}\n\n");
    for package in &packages {
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see its text");
        writeln!(all, "{name}: {licence}")?;
        let dir = package.manifest_path.parent().context("no folder")?;
        for text in texts_in(dir)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<_> = texts.into_iter().map(|(text, of)| (of, text)).collect();
    texts.sort();
    for (mut of, text) in texts {
        of.dedup();
        write!(all, "\n{}\n{}\n\n{text}\n", "=".repeat(78), of.join(", "))?;
    }
    Ok(all)
}

/// The licences in the folder of a crate.
fn texts_in(dir: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|it| name.starts_with(it)) && entry.path().is_file() {
            let text = fs::read(entry.path())?;
            let text = String::from_utf8_lossy(&text).replace("\r\n", "\n");
            texts.push(text.trim_matches('\n').to_owned());
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_text_of_two_crates_appears_once_and_a_crate_outside_of_the_list_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let package = |name: &str, file: &str, text: &str| {
            let place = dir.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join(file), text).unwrap();
            Package {
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                license: Some("MIT".to_owned()),
                manifest_path: place.join("Cargo.toml"),
                source: Some("registry".to_owned()),
            }
        };
        let packages = vec![
            package("b", "LICENSE-MIT", "MIT text\r\n"),
            package("a", "license.txt", "MIT text\n"),
            package("other", "LICENSE", "other text"),
            package("plain", "README.md", "no licence"),
        ];
        let listed = ["a", "b", "plain"].map(|name| (name, "1.0.0")).into();
        let text = text(packages, &listed).unwrap();
        assert_eq!(text.matches("MIT text").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0\n\nMIT text\n"), "{text}");
        assert!(text.contains("plain 1.0.0: MIT\n"), "{text}");
        assert!(!text.contains("other") && !text.contains("no licence"));
    }
}
