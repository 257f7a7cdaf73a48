//! Applies the series in memory, and proves the result by blob ids.
//!
//! For each file that a patch touches, the patch contains git's ids of the content before and after (`--full-index`).
//! The build checks both ids, so the origin of the source does not matter, and no hunk can land in a wrong place.

mod blob_id;
mod mail;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::tree::{self, Overlay};
pub use blob_id::blob_id;
use blob_id::{NONE, short};
use mail::{EXPORT, changes};

const REFRESH: &str = "hint: the pin moved; run \"cargo xtask patches refresh\"";

/// `patches/`: patches in the order of `patches/series`, and the files of `patches/files/`.
/// The default, an empty series, is stock.
#[derive(Debug, Default)]
pub struct Series {
    pub patches: Vec<Patch>,
    /// New files, by their place in the tree.
    pub files: Overlay,
}

/// One mail as `git format-patch` writes it.
#[derive(Debug)]
pub struct Patch {
    pub name: String,
    pub mail: Vec<u8>,
}

impl Series {
    /// Reads `dir/series`, the patches that it names, and `dir/files/`.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut series = Self::default();
        for name in names(&dir.join("series"))? {
            let path = dir.join(&name);
            let mail = fs::read(&path).with_context(|| {
                format!("cannot read {}, named in patches/series", path.display())
            })?;
            series.patches.push(Patch { name, mail });
        }
        let files = dir.join("files");
        if files.is_dir() {
            for path in tree::files(&files)? {
                let content = fs::read(files.join(&path))?;
                series.files.insert(path, content);
            }
        }
        Ok(series)
    }

    /// The files that the series changes in `pristine`.
    pub fn overlay(&self, pristine: &Path) -> Result<Overlay> {
        let mut overlay = Overlay::new();
        for (path, content) in &self.files {
            ensure!(
                !pristine.join(path).exists(),
                "patches/files/{0} would replace upstream's {0}\nhint: change an upstream file with a patch",
                path.display()
            );
            overlay.insert(path.clone(), content.clone());
        }
        for patch in &self.patches {
            patch
                .apply(pristine, &mut overlay)
                .with_context(|| format!("patch {}", patch.name))?;
        }
        Ok(overlay)
    }

    /// Makes `tree` equal to `pristine` with the series; returns the changed paths.
    pub fn apply(&self, pristine: &Path, tree: &Path) -> Result<Vec<PathBuf>> {
        tree::sync(pristine, &self.overlay(pristine)?, tree)
    }
}

impl Patch {
    fn apply(&self, pristine: &Path, overlay: &mut Overlay) -> Result<()> {
        for change in changes(&self.mail)? {
            let path = change.path.display();
            let before = match overlay.remove(&change.path) {
                Some(content) => Some(content),
                None if pristine.join(&change.path).exists() => {
                    Some(fs::read(pristine.join(&change.path))?)
                }
                None => None,
            };
            let found = before.as_deref().map_or(NONE.to_owned(), blob_id);
            ensure!(
                found == change.before,
                "{path} {}, expected {}\n{REFRESH}",
                if found == NONE {
                    "is missing".to_owned()
                } else {
                    format!("is {}", short(&found))
                },
                if change.before == NONE {
                    "no such file".to_owned()
                } else {
                    short(change.before)
                },
            );
            let after = diffy::Patch::from_bytes(change.diff)
                .map_err(|e| anyhow!(e))
                .and_then(|diff| {
                    Ok(diffy::apply_bytes(
                        before.as_deref().unwrap_or_default(),
                        &diff,
                    )?)
                })
                .map_err(|e| anyhow!("{path}: {e}\n{EXPORT}"))?;
            let id = blob_id(&after);
            ensure!(
                id == change.after,
                "{path} becomes {}, expected {}\n{EXPORT}",
                short(&id),
                short(change.after)
            );
            overlay.insert(change.path, after);
        }
        Ok(())
    }
}

/// The names in a series file: one a line, `#` starts a comment.
fn names(path: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "one\ntwo\nthree\n";
    const PATCHED: &str = "one\ntwo\ntwo and a half\nthree\n";

    /// A pristine tree with `src/a.txt`, a series that inserts a line into it and adds a file, an empty place to build in.
    struct Fixture {
        dir: tempfile::TempDir,
        series: Series,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("pristine/src")).unwrap();
            fs::write(dir.path().join("pristine/src/a.txt"), UPSTREAM).unwrap();
            let mut series = Series::default();
            series.patches.push(Patch {
                name: "0001-a.patch".into(),
                mail: mail(&insert(&blob_id(UPSTREAM.as_bytes()))),
            });
            series.files.insert("src/ours.c".into(), b"ours\n".to_vec());
            Self { dir, series }
        }

        fn apply(&self) -> Result<Vec<PathBuf>> {
            self.series.apply(
                &self.dir.path().join("pristine"),
                &self.dir.path().join("tree"),
            )
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.dir.path().join(path)).unwrap()
        }

        fn error(&self) -> String {
            format!("{:#}", self.apply().unwrap_err())
        }
    }

    fn mail(diff: &str) -> Vec<u8> {
        format!("From {NONE} Mon Sep 17 00:00:00 2001\nSubject: [PATCH] a : why\n\nWhy.\n---\n src/a.txt | 1 +\n\n{diff}\n").into_bytes()
    }

    fn insert(before: &str) -> String {
        format!(
            "diff --git a/src/a.txt b/src/a.txt\nindex {before}..{} 100644\n--- a/src/a.txt\n+++ b/src/a.txt\n\
             @@ -1,3 +1,4 @@\n one\n two\n+two and a half\n three\n",
            blob_id(PATCHED.as_bytes())
        )
    }

    fn create(path: &str, content: &str) -> String {
        format!(
            "diff --git a/{path} b/{path}\nnew file mode 100644\nindex {NONE}..{}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}",
            blob_id(content.as_bytes())
        )
    }

    #[test]
    fn applying_changes_the_tree_and_not_the_source() {
        let fixture = Fixture::new();
        fixture.apply().unwrap();
        assert_eq!(fixture.read("tree/src/a.txt"), PATCHED);
        assert_eq!(fixture.read("tree/src/ours.c"), "ours\n");
        assert_eq!(fixture.read("pristine/src/a.txt"), UPSTREAM);
    }

    #[test]
    fn applying_twice_touches_nothing() {
        let fixture = Fixture::new();
        assert_eq!(fixture.apply().unwrap().len(), 2);
        assert_eq!(fixture.apply().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_shorter_series_restores_what_the_longer_one_changed() {
        let mut fixture = Fixture::new();
        fixture.apply().unwrap();
        fixture.series = Series::default();
        assert_eq!(fixture.apply().unwrap().len(), 2);
        assert_eq!(fixture.read("tree/src/a.txt"), UPSTREAM);
        assert!(!fixture.dir.path().join("tree/src/ours.c").exists());
    }

    #[test]
    fn a_patch_builds_on_the_one_before() {
        let mut fixture = Fixture::new();
        let before = blob_id(PATCHED.as_bytes());
        let after = "one\ntwo\nthree\n";
        let diff = format!(
            "diff --git a/src/a.txt b/src/a.txt\nindex {before}..{} 100644\n--- a/src/a.txt\n+++ b/src/a.txt\n\
             @@ -1,4 +1,3 @@\n one\n two\n-two and a half\n three\n{}",
            blob_id(after.as_bytes()),
            create("src/new.txt", "new\n")
        );
        fixture.series.patches.push(Patch {
            name: "0002-b.patch".into(),
            mail: mail(&diff),
        });
        fixture.apply().unwrap();
        assert_eq!(fixture.read("tree/src/a.txt"), after);
        assert_eq!(fixture.read("tree/src/new.txt"), "new\n");
    }

    #[test]
    fn another_source_is_named_with_both_ids() {
        let fixture = Fixture::new();
        fs::write(
            fixture.dir.path().join("pristine/src/a.txt"),
            "something else\n",
        )
        .unwrap();
        let (found, expected) = (
            short(&blob_id(b"something else\n")),
            short(&blob_id(UPSTREAM.as_bytes())),
        );
        assert_eq!(
            fixture.error(),
            format!("patch 0001-a.patch: src/a.txt is {found}, expected {expected}\n{REFRESH}")
        );
        assert!(
            !fixture.dir.path().join("tree").exists(),
            "nothing is written before all is known to fit"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let fixture = Fixture::new();
        fs::remove_file(fixture.dir.path().join("pristine/src/a.txt")).unwrap();
        assert!(
            fixture
                .error()
                .starts_with("patch 0001-a.patch: src/a.txt is missing, expected ")
        );
    }

    #[test]
    fn a_new_file_that_upstream_has_is_refused() {
        let mut fixture = Fixture::new();
        fixture.series.patches[0].mail = mail(&create("src/a.txt", "new\n"));
        assert!(fixture.error().contains("expected no such file"));
        fixture.series.patches.clear();
        fixture.series.files.insert("src/a.txt".into(), Vec::new());
        assert!(
            fixture
                .error()
                .starts_with("patches/files/src/a.txt would replace upstream's")
        );
    }

    #[test]
    fn an_edited_hunk_is_caught_by_the_id_after() {
        let mut fixture = Fixture::new();
        let edited = insert(&blob_id(UPSTREAM.as_bytes())).replace("a half", "a third");
        fixture.series.patches[0].mail = mail(&edited);
        assert!(
            fixture
                .error()
                .starts_with("patch 0001-a.patch: src/a.txt becomes ")
        );
    }

    #[test]
    fn renames_and_binary_files_and_short_ids_are_refused() {
        let mut fixture = Fixture::new();
        for (diff, cause) in [
            (
                "diff --git a/a b/b\nsimilarity index 100%\nrename from a\nrename to b\n",
                "rename",
            ),
            (
                "diff --git a/a b/a\nindex 1..2 100644\nGIT binary patch\n",
                "binary",
            ),
            (
                "diff --git a/a b/a\nindex 1234567..89abcde 100644\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-a\n+b\n",
                "no full blob ids",
            ),
        ] {
            fixture.series.patches[0].mail = mail(diff);
            assert!(fixture.error().contains(cause), "{}", fixture.error());
        }
    }

    #[test]
    fn a_path_that_leads_out_of_the_tree_is_refused() {
        let mut fixture = Fixture::new();
        fixture.series.patches[0].mail = mail(&create("../a", "x\n"));
        assert!(fixture.error().contains("names no file in the tree"));
    }
}
