//! A source tree with an overlay of files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Files that replace files of a tree, or add files: path in the tree, and content.
pub type Overlay = BTreeMap<PathBuf, Vec<u8>>;

/// Makes `to` equal to `from` with `overlay` on top, and returns the changed paths.
///
/// It compares contents, so an unchanged file keeps its time and is not compiled again. It also repairs the results of an
/// interrupted copy, an earlier series or a stray edit.
pub fn sync(from: &Path, overlay: &Overlay, to: &Path) -> Result<Vec<PathBuf>> {
    let mut touched = Vec::new();
    let pristine = files(from)?;
    fs::create_dir_all(to).with_context(|| cannot_write(to))?;
    for path in files(to)? {
        if !pristine.contains(&path) && !overlay.contains_key(&path) {
            fs::remove_file(to.join(&path)).with_context(|| cannot_write(&path))?;
            touched.push(path);
        }
    }
    for path in pristine.iter().filter(|path| !overlay.contains_key(*path)) {
        let (source, target) = (from.join(path), to.join(path));
        if !same(&source, &target)? {
            fs::create_dir_all(parent(&target)).with_context(|| cannot_write(&target))?;
            fs::copy(&source, &target).with_context(|| cannot_write(&target))?;
            touched.push(path.clone());
        }
    }
    for (path, content) in overlay {
        let target = to.join(path);
        if fs::read(&target).ok().as_ref() != Some(content) {
            fs::create_dir_all(parent(&target)).with_context(|| cannot_write(&target))?;
            fs::write(&target, content).with_context(|| cannot_write(&target))?;
            touched.push(path.clone());
        }
    }
    Ok(touched)
}

/// All files of a tree, as paths in it.
pub fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let path = root.join(&dir);
        for entry in
            fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?
        {
            let entry = entry?;
            let is_dir = entry.path().is_dir();
            if dir.as_os_str().is_empty() && is_left_out(&entry.file_name(), is_dir) {
                continue;
            }
            let path = dir.join(entry.file_name());
            if is_dir {
                dirs.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

/// Entries at the top of a checkout that no build needs: history, vocabularies and models, other builds. Without `.git`,
/// CMake uses the commit of its options.
fn is_left_out(name: &OsStr, is_dir: bool) -> bool {
    name == ".git" || is_dir && (name == "models" || name.as_encoded_bytes().starts_with(b"build"))
}

fn same(a: &Path, b: &Path) -> Result<bool> {
    let wanted = fs::metadata(a).with_context(|| format!("cannot read {}", a.display()))?;
    Ok(
        fs::metadata(b).is_ok_and(|found| found.is_file() && found.len() == wanted.len())
            && fs::read(a)? == fs::read(b)?,
    )
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_copy_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (path, content) in [
            ("from/a", "aa"),
            ("from/sub/b", "bb"),
            ("to/a", "a"),
            ("to/stray", ""),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(parent(&path)).unwrap();
            fs::write(path, content).unwrap();
        }
        let mut touched = sync(&from, &Overlay::new(), &to).unwrap();
        touched.sort();
        assert_eq!(touched, ["a", "stray", "sub/b"].map(PathBuf::from));
        assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "aa");
        assert_eq!(files(&from).unwrap(), files(&to).unwrap());
    }

    #[test]
    fn history_and_models_and_other_builds_are_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            ".git/HEAD",
            "models/m.gguf",
            "build-cuda/x.o",
            "build.sh",
            "src/build/x.c",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(parent(&path)).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(
            files(dir.path()).unwrap(),
            ["build.sh", "src/build/x.c"].map(PathBuf::from).into()
        );
    }
}
