//! A made-up repository with a made-up upstream, and `xtask` run on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Files that `xtask` expects in any llama.cpp.
const UPSTREAM: &[&str] = &[
    "CMakeLists.txt",
    "include/llama.h",
    "ggml/include/ggml.h",
    "ggml/src/ggml-backend.cpp",
    "common/arg.cpp",
    "tools/server/server-context.cpp",
    "vendor/nlohmann/json.hpp",
];

/// The file that the made-up patches change.
pub const MMAP: &str = "src/llama-mmap.cpp";

pub struct Fixture {
    root: TempDir,
}

pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Fixture {
    /// A repository whose series is empty.
    pub fn empty() -> Self {
        let fixture = Self {
            root: TempDir::new().unwrap(),
        };
        let lock = format!(
            "# a comment that stays\nregistry = \"pip\"\npackage = \"llama-cpp-python\"\nversion = \"1.0.0\"\nsha256 = \"{}\"\n\n# another one\nsubdir = \"vendor/llama.cpp\"\ncommit = \"{}\"\ndate = \"2026-01-01\"\n",
            "a".repeat(64),
            "b".repeat(40),
        );
        fixture.write("vendor/llama.cpp.lock", &lock);
        upstream(&fixture.path("vendor/llama.cpp"));
        fixture
    }

    /// Two patches and a file of ours, exported.
    pub fn with_series() -> Self {
        let fixture = Self::empty();
        fixture.xtask(&["patches", "import"]).succeeds();
        fixture.edit(MMAP, "line 10\n", "line 10\ncall();\n");
        fixture.edit_tree("src/llama-ours.cpp", "void call() {}\n");
        fixture.commit(&message("llama : call ours"));
        fixture.edit(MMAP, "line 30\n", "line 30\ncall_again();\n");
        fixture.commit(&message("llama : call ours again"));
        fixture.xtask(&["patches", "export"]).succeeds();
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn work_tree(&self) -> PathBuf {
        self.path("target/patches/llama.cpp")
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, text: &str) {
        write(&self.path(name), text);
    }

    /// The only patch whose name contains `part`.
    pub fn patch(&self, part: &str) -> String {
        let names: Vec<String> = self
            .patches()
            .into_keys()
            .filter(|name| name.contains(part))
            .collect();
        assert_eq!(names.len(), 1, "{part}: {names:?}");
        format!("patches/{}", names[0])
    }

    /// Everything below `patches/`.
    pub fn patches(&self) -> std::collections::BTreeMap<String, String> {
        let root = self.path("patches");
        let mut found = std::collections::BTreeMap::new();
        let mut dirs = vec![root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let name = path
                        .strip_prefix(&root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned();
                    found.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
        found
    }

    /// Replaces text in a file of the repository.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "`{name}` has no `{from}`");
        self.write(name, &text.replace(from, to));
    }

    /// Replaces text in a file of the work tree.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        self.replace(&format!("target/patches/llama.cpp/{name}"), from, to);
    }

    pub fn edit_tree(&self, name: &str, text: &str) {
        write(&self.work_tree().join(name), text);
    }

    pub fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", message]);
    }

    /// Git as a developer runs it.
    pub fn git(&self, args: &[&str]) -> String {
        git(&self.work_tree(), args)
    }

    pub fn xtask(&self, args: &[&str]) -> Run {
        self.xtask_with(args, &[])
    }

    pub fn xtask_with(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("--root").arg(self.root.path()).args(args);
        for name in ["CARGO_TARGET_DIR", "LLAMA_CPP_DIR"] {
            command.env_remove(name);
        }
        Run::from(command.envs(env.iter().copied()).output().unwrap())
    }
}

impl From<Output> for Run {
    fn from(out: Output) -> Self {
        Self {
            code: out.status.code().unwrap(),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }
}

impl Run {
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Checks that one line of standard output contains all of `parts`.
    #[track_caller]
    pub fn finds(self, parts: &[&str]) -> Self {
        let is_found = self
            .stdout
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(is_found, "no line with {parts:?} in:\n{}", self.stdout);
        self
    }

    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(
            self.stderr.contains(part),
            "no {part:?} in:\n{}",
            self.stderr
        );
        self
    }
}

/// A message that `check` accepts.
pub fn message(subject: &str) -> String {
    format!("{subject}\n\nBecause the test says so.\n\nForwarded: no\nDrop-When: the test ends\n")
}

/// A llama.cpp of 40 lines.
pub fn upstream(dir: &Path) {
    for name in UPSTREAM {
        write(&dir.join(name), &format!("{name}\n"));
    }
    let lines: Vec<String> = (1..=40).map(|n| format!("line {n}\n")).collect();
    write(&dir.join(MMAP), &lines.concat());
}

pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), "A Developer")
            .env(format!("GIT_{who}_EMAIL"), "dev@example.com");
    }
    let out = command.args(args).output().unwrap();
    assert!(
        out.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}
