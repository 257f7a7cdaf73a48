//! Applies the series in memory, and proves the result by blob ids.
//!
//! For each file that a patch touches, the patch contains git's ids of the content before and after (`--full-index`).
//! The build checks both ids, so the origin of the source does not matter, and no hunk can land in a wrong place.
//!
//! A tree that the user names may be another version. Files that differ there are patched hunk by hunk (`place`), and the caller
//! warns.

pub mod blob_id;
mod mail;
mod pass;
pub mod place;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::hex;
use super::tree::{self, Overlay};
pub use pass::Hunk;
use pass::Pass;

const TRY: &str =
    "hint: \"cargo xtask patches try TREE\" lists all hunks that conflict with this source";

/// `patches/`: patches in the order of `patches/series`, and the files of `patches/files/`.
/// The default, an empty series, is stock.
#[derive(Debug, Default)]
pub struct Series {
    pub patches: Vec<Patch>,
    /// New files, by their place in the tree.
    pub files: Overlay,
    /// Folders that the source omits. The series changes nothing in them.
    pub omitted: BTreeSet<PathBuf>,
}

/// The sources that the series accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepts {
    /// Files with the ids in the patches.
    Pin,
    /// Also other files. Git merges a hunk if one of these trees contains the file of the pin.
    Others(Vec<PathBuf>),
}

/// What `Series::apply` did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Files of the tree that changed.
    pub changed: Vec<PathBuf>,
    /// Files that are not those of the pin, patched hunk by hunk.
    pub others: BTreeSet<PathBuf>,
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

    /// A short hash of every byte.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        for patch in &self.patches {
            add(&patch.mail);
        }
        for (path, content) in &self.files {
            add(path.as_os_str().as_encoded_bytes());
            add(content);
        }
        hex(&hash.finalize()[..4])
    }

    /// Leaves out the programs of llama.cpp that a package omits: the folders below `tools/` that nothing in `source` can build.
    pub fn omit_missing_programs(&mut self, source: &Path) -> Result<()> {
        let mut paths: Vec<PathBuf> = self.files.keys().cloned().collect();
        for patch in &self.patches {
            let changes = mail::changes(&patch.mail);
            let changes = changes.with_context(|| format!("patch {}", patch.name))?;
            paths.extend(changes.into_iter().map(|change| change.path));
        }
        let folders = paths.iter().filter_map(|path| program_folder(path));
        // Of an omitted program, a package can still contain the description.
        let missing = folders.filter(|folder| !source.join(folder).join("CMakeLists.txt").exists());
        self.omitted = missing.collect();
        let omitted = &self.omitted;
        self.files.retain(|path, _| !is_below(path, omitted));
        Ok(())
    }

    /// The files that the series changes in `pristine`, and the paths of those that are not the files of the pin.
    pub fn overlay(
        &self,
        pristine: &Path,
        accepts: &Accepts,
    ) -> Result<(Overlay, BTreeSet<PathBuf>)> {
        let mut pass = Pass::new(self, pristine)?;
        for patch in &self.patches {
            let hunks = pass
                .patch(patch, accepts)
                .with_context(|| format!("patch {}", patch.name))?;
            if let Some(hunk) = hunks.iter().find(|hunk| hunk.placed.fails()) {
                bail!(
                    "patch {}: {}: the hunk at line {} {}\n{TRY}",
                    patch.name,
                    hunk.path.display(),
                    hunk.line,
                    hunk.placed
                );
            }
        }
        Ok((pass.overlay, pass.others))
    }

    /// Tries each hunk on `source`. Hunks that conflict are skipped.
    pub fn attempt(&self, source: &Path, pins: Vec<PathBuf>) -> Result<Vec<Hunk>> {
        let mut pass = Pass::new(self, source)?;
        let accepts = Accepts::Others(pins);
        let mut hunks = Vec::new();
        for patch in &self.patches {
            let tried = pass.patch(patch, &accepts);
            hunks.extend(tried.with_context(|| format!("patch {}", patch.name))?);
        }
        Ok(hunks)
    }

    /// Makes `tree` equal to `pristine` with the series.
    pub fn apply(&self, pristine: &Path, tree: &Path, accepts: &Accepts) -> Result<Applied> {
        let (overlay, others) = self.overlay(pristine, accepts)?;
        let changed = tree::sync(pristine, &overlay, tree)?;
        Ok(Applied { changed, others })
    }
}

/// `tools/NAME` for a file in this folder.
fn program_folder(path: &Path) -> Option<PathBuf> {
    let is_program = path.starts_with("tools") && path.components().count() > 2;
    is_program.then(|| path.components().take(2).collect())
}

fn is_below(path: &Path, folders: &BTreeSet<PathBuf>) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
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
    use std::collections::BTreeMap;

    use super::blob_id::{NONE, blob_id, short};
    use super::pass::REFRESH;
    use super::place::Placed;
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
            self.apply_to(&Accepts::Pin).map(|applied| applied.changed)
        }

        fn apply_to(&self, accepts: &Accepts) -> Result<Applied> {
            self.series.apply(
                &self.dir.path().join("pristine"),
                &self.dir.path().join("tree"),
                accepts,
            )
        }

        /// Keeps the present source as the pin.
        fn pin(&self) -> Vec<PathBuf> {
            let pin = self.dir.path().join("pin");
            tree::sync(&self.dir.path().join("pristine"), &Overlay::new(), &pin).unwrap();
            vec![pin]
        }

        fn attempt(&self, pins: &[PathBuf]) -> Vec<Placed> {
            let source = self.dir.path().join("pristine");
            let hunks = self.series.attempt(&source, pins.to_vec()).unwrap();
            hunks.into_iter().map(|hunk| hunk.placed).collect()
        }

        fn write(&self, text: &str) {
            fs::write(self.dir.path().join("pristine/src/a.txt"), text).unwrap();
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
    fn an_id_belongs_to_each_byte_of_a_series() {
        let id = |change: fn(&mut Series)| {
            let mut series = Fixture::new().series;
            change(&mut series);
            series.id()
        };
        let ids = [
            id(|_| ()),
            id(|series| series.patches[0].mail.push(b'\n')),
            id(|series| series.files.values_mut().for_each(|file| file.push(b'\n'))),
            id(|series| {
                series.files = BTreeMap::from([("src/other.c".into(), b"ours\n".to_vec())]);
            }),
            id(|series| series.patches.clear()),
        ];
        assert_eq!(ids[0], id(|_| ()));
        assert_eq!(BTreeSet::from(ids.clone()).len(), ids.len(), "{ids:?}");
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
    fn another_version_is_patched_where_its_context_is() {
        let fixture = Fixture::new();
        fixture.write("zero\none\ntwo\nthree\nfour\n");
        let applied = fixture.apply_to(&Accepts::Others(vec![])).unwrap();
        assert_eq!(
            fixture.read("tree/src/a.txt"),
            "zero\none\ntwo\ntwo and a half\nthree\nfour\n"
        );
        assert_eq!(applied.others, ["src/a.txt".into()].into());
        assert_eq!(fixture.attempt(&[]), [Placed::Applies(1)]);
    }

    #[test]
    fn another_version_without_the_context_is_merged_only_with_the_pin() {
        let fixture = Fixture::new();
        let pins = fixture.pin();
        fixture.write("1\ntwo\nthree\n");
        let error = fixture.apply_to(&Accepts::Others(vec![])).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!("patch 0001-a.patch: src/a.txt: the hunk at line 1 conflicts\n{TRY}")
        );
        assert!(!fixture.dir.path().join("tree").exists());
        assert_eq!(fixture.attempt(&pins), [Placed::Merges]);
        let applied = fixture.apply_to(&Accepts::Others(pins)).unwrap();
        assert_eq!(
            fixture.read("tree/src/a.txt"),
            "1\ntwo\ntwo and a half\nthree\n"
        );
        assert_eq!(applied.others, ["src/a.txt".into()].into());
    }

    #[test]
    fn a_later_patch_is_merged_with_the_pin_after_the_earlier_ones() {
        let mut fixture = Fixture::new();
        let after = "one\ntwo\ntwo and a half\nthree\nlast\n";
        let diff = format!(
            "diff --git a/src/a.txt b/src/a.txt\nindex {}..{} 100644\n--- a/src/a.txt\n+++ b/src/a.txt\n\
             @@ -2,3 +2,4 @@\n two\n two and a half\n three\n+last\n",
            blob_id(PATCHED.as_bytes()),
            blob_id(after.as_bytes())
        );
        fixture.series.patches.push(Patch {
            name: "0002-b.patch".into(),
            mail: mail(&diff),
        });
        let pins = fixture.pin();
        fixture.write("one\n2\n2.1\nthree\n");
        assert_eq!(fixture.attempt(&pins), [Placed::Conflicts, Placed::Merges]);
        fixture.write("1\ntwo\nthree\n");
        assert_eq!(fixture.attempt(&pins), [Placed::Merges, Placed::Applies(0)]);
    }

    #[test]
    fn only_whole_programs_are_left_out() {
        let mut fixture = Fixture::new();
        let in_tools = |name: &str| {
            let diff = insert(&blob_id(UPSTREAM.as_bytes()));
            mail(&diff.replace("src/a.txt", &format!("tools/{name}/a.txt")))
        };
        for name in ["there", "missing"] {
            fixture.series.patches.push(Patch {
                name: format!("0002-{name}.patch"),
                mail: in_tools(name),
            });
            let path = Path::new("tools").join(name).join("ours.c");
            fixture.series.files.insert(path, b"ours\n".to_vec());
        }
        let source = fixture.dir.path().join("pristine");
        for file in ["there/CMakeLists.txt", "missing/README.md"] {
            let path = source.join("tools").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fixture.series.omit_missing_programs(&source).unwrap();
        assert_eq!(fixture.series.omitted, ["tools/missing".into()].into());
        assert!(
            fixture
                .error()
                .starts_with("patch 0002-there.patch: tools/there/a.txt is missing, expected ")
        );
        fs::write(source.join("tools/there/a.txt"), UPSTREAM).unwrap();
        fixture.apply().unwrap();
        assert_eq!(fixture.read("tree/tools/there/a.txt"), PATCHED);
        assert_eq!(fixture.read("tree/tools/there/ours.c"), "ours\n");
        assert!(
            !fixture
                .dir
                .path()
                .join("tree/tools/missing/ours.c")
                .exists()
        );
    }

    #[test]
    fn a_hunk_in_a_missing_file_fails() {
        let fixture = Fixture::new();
        let pins = fixture.pin();
        fs::remove_file(fixture.dir.path().join("pristine/src/a.txt")).unwrap();
        assert_eq!(fixture.attempt(&pins), [Placed::FileMissing]);
    }

    #[test]
    fn the_pin_is_never_patched_by_context() {
        let fixture = Fixture::new();
        let applied = fixture.apply_to(&Accepts::Others(vec![])).unwrap();
        assert_eq!(applied.others, BTreeSet::new());
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
