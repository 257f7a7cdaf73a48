//! Git with settings that give the same bytes on every machine.
//!
//! It ignores the system and global configuration, `GIT_*` variables, the language, attributes files, hooks and
//! signing. Options on the command line override the configuration of a work tree.

use std::ffi::{OsStr, OsString};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Overrides a work tree's own configuration.
const FIXED: &[&str] = &[
    "core.autocrlf=false",
    "core.eol=lf",
    "core.safecrlf=false",
    "core.fileMode=true",
    "core.quotePath=true",
    "core.abbrev=auto",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.commentChar=#",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "commit.cleanup=strip",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
    "diff.renames=false",
    "merge.conflictStyle=diff3",
    "rerere.enabled=false",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// Generated commits (the base, the files) always get the same id.
const NOBODY: &[(&str, &str)] = &[
    ("GIT_AUTHOR_NAME", "llama-hugepages"),
    ("GIT_AUTHOR_EMAIL", "patches@llama-hugepages.invalid"),
    ("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z"),
    ("GIT_COMMITTER_NAME", "llama-hugepages"),
    ("GIT_COMMITTER_EMAIL", "patches@llama-hugepages.invalid"),
    ("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z"),
];

/// One repository, whose work tree is `dir`.
#[derive(Debug, Clone)]
pub struct Git {
    dir: PathBuf,
}

impl Git {
    /// The repository in `dir`; `None` if `dir` itself has no repository.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        if !dir.join(".git").exists() {
            return Ok(None);
        }
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot resolve `{}`", dir.display()))?;
        Ok(Some(Self { dir }))
    }

    /// A separate repository in `dir`, even inside another repository.
    pub fn init(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create `{}`", dir.display()))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot resolve `{}`", dir.display()))?;
        let git = Self { dir };
        // The empty template: no sample hooks, no `info/exclude` of the machine.
        git.run(["init", "--quiet", "--template=", "--initial-branch=series"])?;
        Ok(git)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new("git");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GIT_") {
                command.env_remove(name);
            }
        }
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_EDITOR", "true")
            .env("GIT_SEQUENCE_EDITOR", "true")
            .env("LC_ALL", "C")
            .env("LANGUAGE", "C")
            .env("TZ", "UTC")
            .envs(NOBODY.iter().copied())
            .current_dir(&self.dir);
        // A directory without `.git` must not count as part of the repository around it.
        if let Some(parent) = self.dir.parent() {
            command.env("GIT_CEILING_DIRECTORIES", parent);
        }
        for setting in FIXED {
            command.args(["-c", setting]);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs to the end, and fails with the message of git.
    pub fn run<I, S>(&self, args: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        checked(&mut self.command(args)).map(drop)
    }

    /// Standard output, unchanged.
    pub fn bytes<I, S>(&self, args: I) -> Result<Vec<u8>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Ok(checked(&mut self.command(args))?.stdout)
    }

    /// Standard output as text, without the last line feed.
    pub fn text<I, S>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let text = String::from_utf8(self.bytes(args)?).context("output of git is not UTF-8")?;
        Ok(text.trim_end().to_owned())
    }

    /// Runs to the end; the caller checks the exit code.
    pub fn attempt<I, S>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        output(&mut self.command(args))
    }

    /// The id of `commitish`, or none.
    pub fn resolve(&self, commitish: &str) -> Result<Option<String>> {
        let out = self.attempt([
            "rev-parse",
            "--verify",
            "--quiet",
            &format!("{commitish}^{{commit}}"),
        ])?;
        let id = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        Ok((out.status.success() && !id.is_empty()).then_some(id))
    }

    /// Paths of all files in `commitish`, sorted as git sorts.
    pub fn files(&self, commitish: &str) -> Result<Vec<String>> {
        split_nul(&self.bytes([
            "ls-tree",
            "-r",
            "-z",
            "--name-only",
            "--full-tree",
            commitish,
        ])?)
    }

    /// A commit that holds exactly the files of `folder`, which is only read.
    pub fn commit_of_folder(&self, folder: &Path, message: &str) -> Result<String> {
        let index = self.dir.join(".git/index-of-folder");
        let mut work_tree = OsString::from("--work-tree=");
        work_tree.push(
            folder
                .canonicalize()
                .with_context(|| format!("cannot resolve `{}`", folder.display()))?,
        );
        let git_dir = self.dir.join(".git");
        let with_folder = |args: &[&str]| {
            let mut all = vec![
                OsString::from("--git-dir"),
                git_dir.clone().into(),
                work_tree.clone(),
            ];
            all.extend(args.iter().map(OsString::from));
            let mut command = self.command(all);
            command.env("GIT_INDEX_FILE", &index).current_dir(folder);
            command
        };
        // `--force`: upstream ignores some files that it has committed.
        checked(&mut with_folder(&["add", "--all", "--force", "."]))?;
        let tree = String::from_utf8(checked(&mut with_folder(&["write-tree"]))?.stdout)?;
        std::fs::remove_file(&index).context("cannot remove the temporary index")?;
        self.text(["commit-tree", tree.trim(), "-m", message])
    }

    /// Runs with `input` on standard input; standard output as text, without the last line feed.
    pub fn feed<I, S>(&self, args: I, input: &[u8]) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut file = tempfile::tempfile().context("cannot create a temporary file")?;
        file.write_all(input)
            .and_then(|()| file.rewind())
            .context("cannot write a temporary file")?;
        let out = checked(self.command(args).stdin(file))?;
        Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
    }
}

/// Splits output of git at NUL.
pub fn split_nul(bytes: &[u8]) -> Result<Vec<String>> {
    bytes
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).context("a path in git is not UTF-8"))
        .collect()
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().context("cannot run `git`")
}

fn checked(command: &mut Command) -> Result<Output> {
    let out = output(command)?;
    if !out.status.success() {
        let verb = command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned())
            .skip_while(|arg| arg == "-c" || arg.contains('='))
            .find(|arg| !arg.starts_with('-') && !arg.contains('/') && !arg.contains('='))
            .unwrap_or_default();
        bail!("git {verb}: {}", said(&out));
    }
    Ok(out)
}

/// The message of git, on one line, without its advice.
pub fn said(out: &Output) -> String {
    let both = [out.stderr.as_slice(), out.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("hint:"))
        .collect();
    if lines.is_empty() {
        return out.status.to_string();
    }
    lines.join("; ")
}
