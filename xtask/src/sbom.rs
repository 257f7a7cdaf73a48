//! The parts of the programs (SBOM), as CycloneDX: the crates from cargo-sbom, and llama.cpp from the pin. NOTICE names the libraries
//! inside of llama.cpp.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::build::lock::Lock;
use crate::repo::Repo;
use crate::run::run;

const TOOL: &str = "cargo-sbom";
const TOOL_VERSION: &str = "0.10.0";
/// It depends on the crate of the server, so the list covers both programs.
const PACKAGE: &str = "hugepages";

/// Writes the list. The same sources give the same bytes.
pub fn write(repo: &Repo) -> Result<PathBuf> {
    let output = Command::new(tool(repo)?)
        .args(["sbom", "--cargo-package", PACKAGE])
        .args(["--output-format", "cyclone_dx_json_1_6"])
        .arg("--project-directory")
        .arg(repo.root())
        .output()
        .context("cannot run cargo-sbom")?;
    ensure!(
        output.status.success(),
        "cargo-sbom failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut list: Value = serde_json::from_slice(&output.stdout).context("cargo-sbom")?;
    add(&mut list, &repo.lock()?)?;
    make_reproducible(&mut list)?;
    let dir = repo.target().join("sbom");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    let path = dir.join("sbom.json");
    fs::write(&path, serde_json::to_vec_pretty(&list)?)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

/// cargo-sbom, installed into `target/` once.
fn tool(repo: &Repo) -> Result<PathBuf> {
    let root = repo
        .target()
        .join("cargo-tools")
        .join(format!("{TOOL}-{TOOL_VERSION}"));
    let program = root.join("bin").join(TOOL);
    if !program.exists() {
        eprintln!("cargo install {TOOL} {TOOL_VERSION} (a few minutes, once)");
        run(Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--root"])
            .arg(&root)
            .args(["--version", TOOL_VERSION, TOOL]))?;
    }
    Ok(program)
}

fn add(list: &mut Value, lock: &Lock) -> Result<()> {
    array(list, "components")?.push(json!({
        "bom-ref": "llama.cpp",
        "licenses": [{ "expression": "MIT" }],
        "name": "llama.cpp",
        "pedigree": { "notes": "with the patches of llama-hugepages" },
        "purl": format!("pkg:github/ggml-org/llama.cpp@{}", lock.commit),
        "type": "library",
        "version": lock.commit,
    }));
    let is_ours = |dependency: &&mut Value| {
        let name = dependency["ref"].as_str();
        name.is_some_and(|name| name.contains("-llama-hugepages-"))
    };
    let ours = array(list, "dependencies")?.iter_mut().find(is_ours);
    let ours = ours.context("cargo-sbom does not list llama-hugepages")?;
    array(ours, "dependsOn")?.push("llama.cpp".into());
    Ok(())
}

/// Removes the time, the number and the user of this run, and sorts what cargo-sbom leaves unsorted.
fn make_reproducible(list: &mut Value) -> Result<()> {
    let by =
        |key: &'static str| move |part: &Value| part[key].as_str().unwrap_or_default().to_owned();
    array(list, "components")?.sort_by_key(by("bom-ref"));
    let dependencies = array(list, "dependencies")?;
    dependencies.sort_by_key(by("ref"));
    for dependency in dependencies {
        array(dependency, "dependsOn")?.sort_by_key(ToString::to_string);
    }
    let list = list.as_object_mut().context("no object")?;
    list.remove("serialNumber");
    if let Some(metadata) = list.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("timestamp");
        metadata.remove("authors");
    }
    Ok(())
}

fn array<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>> {
    let value = value.get_mut(key).and_then(Value::as_array_mut);
    value.with_context(|| format!("cargo-sbom writes no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The list of one run of cargo-sbom.
    fn written(time: &str, names: [&str; 2]) -> Value {
        let component = |name: &&str| json!({ "bom-ref": name, "name": name });
        let mut list = json!({
            "serialNumber": time,
            "metadata": { "timestamp": time, "authors": [], "tools": [] },
            "components": names.iter().map(component).collect::<Vec<_>>(),
            "dependencies": [
                { "ref": names[0], "dependsOn": [] },
                { "ref": names[1], "dependsOn": ["b", "a"] },
                { "ref": "Ref-llama-hugepages-0.1.0", "dependsOn": [names[0], names[1]] },
            ],
        });
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let lock = crate::build::lock::read(&root.join("vendor/llama.cpp.lock")).unwrap();
        add(&mut list, &lock).unwrap();
        make_reproducible(&mut list).unwrap();
        list
    }

    #[test]
    fn the_list_contains_upstream_and_nothing_of_the_run() {
        let list = written("today", ["x", "y"]);
        assert_eq!(list["components"][0]["name"], "llama.cpp");
        assert_eq!(list["dependencies"][0]["dependsOn"][0], "llama.cpp");
        assert!(!list.to_string().contains("today"), "{list}");
    }

    #[test]
    fn the_order_of_a_run_does_not_matter() {
        let components = |list: Value| list["components"].clone();
        assert_eq!(
            components(written("a", ["x", "y"])),
            components(written("b", ["y", "x"]))
        );
    }
}
