//! Prepares `target/upstream-tests/`: Python with upstream's packages, the folder of the hub, and for each server a copy of
//! upstream's tests, beside the other folders of upstream's tree that the tests read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Server;
use crate::build::source::{self, Source};
use crate::git::Git;
use crate::repo::Repo;

/// Packages beside upstream's requirements: for time limits, and the imports of upstream's gguf package.
const MORE_PACKAGES: [&str; 2] = ["pytest-timeout>=2,<3", "pyyaml>=6,<7"];

const TESTS: &str = "tools/server/tests";

/// Folders of upstream's tree that its tests read.
const LINKED: [&str; 2] = ["models", "tools/mtmd"];

pub struct Bench {
    dir: PathBuf,
    scripts: PathBuf,
    source: Source,
}

impl Bench {
    pub fn new(repo: &Repo) -> Result<Self> {
        let dir = std::path::absolute(repo.target().join("upstream-tests"))?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot write `{}`", dir.display()))?;
        let mut source = repo.source()?;
        source.dir = source.dir.canonicalize()?;
        Ok(Self {
            dir,
            scripts: std::path::absolute(repo.root().join("xtask/src/upstream_tests"))?,
            source,
        })
    }

    /// The folder of upstream's unchanged tests.
    pub fn tests(&self) -> PathBuf {
        self.source.dir.join(TESTS)
    }

    pub fn python(&self) -> PathBuf {
        self.dir.join("venv/bin/python")
    }

    /// The folder of `plugin.py`.
    pub fn scripts(&self) -> &Path {
        &self.scripts
    }

    pub fn hub(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// The folder of the server's downloads.
    pub fn cache(&self, server: Server) -> PathBuf {
        self.folder(server).join("cache")
    }

    /// Logs, downloaded models and the tree of one server.
    pub fn folder(&self, server: Server) -> PathBuf {
        self.dir.join(server.name())
    }

    /// Installs Python's packages. The first call needs a network.
    pub fn make_venv(&self) -> Result<()> {
        let requirements = self.tests().join("requirements.txt");
        let wanted = read(&requirements)? + &MORE_PACKAGES.join("\n");
        self.make("venv", &wanted, |venv| {
            run(Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(venv))?;
            run(Command::new(venv.join("bin/python"))
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "-r",
                ])
                .arg(&requirements)
                .args(MORE_PACKAGES))
            .context("cannot install the packages that upstream's tests require")
        })
    }

    /// Writes the models. Call it after `make_venv`.
    pub fn make_hub(&self) -> Result<()> {
        let script = self.scripts.join("models.py");
        let wanted = format!("{:?}\n{}", self.source.commit, read(&script)?);
        self.make("hub", &wanted, |hub| {
            run(Command::new(self.python())
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .arg(&script)
                .args([&self.source.dir, hub]))
            .context("cannot write the models")
        })
    }

    /// Makes a folder, unless an earlier run made it from the same input.
    fn make(&self, name: &str, input: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let (folder, stamp) = (
            self.dir.join(name),
            self.dir.join(format!("{name}.made-of")),
        );
        if fs::read_to_string(&stamp).is_ok_and(|found| found == input) && folder.is_dir() {
            return Ok(());
        }
        eprintln!("upstream-tests: making {}", folder.display());
        remove(&folder)?;
        make(&folder)?;
        fs::write(&stamp, input).with_context(|| format!("cannot write `{}`", stamp.display()))
    }

    /// A fresh tree and an empty cache for one server; returns its copy of the tests.
    pub fn lay_out(&self, server: Server) -> Result<PathBuf> {
        let tree = self.folder(server).join("llama.cpp");
        remove(&tree)?;
        remove(&self.cache(server))?;
        let tests = tree.join(TESTS);
        fs::create_dir_all(&tests)
            .with_context(|| format!("cannot write `{}`", tests.display()))?;
        source::copy(&self.tests(), &tests)?;
        // Some tests write to this folder without creating it.
        fs::create_dir_all(tests.join("tmp"))?;
        for folder in LINKED {
            symlink(self.source.dir.join(folder), tree.join(folder))?;
        }
        // The server's search tool skips files that their git repository ignores, and this repository ignores target/.
        Git::init(&tree)?;
        Ok(tests)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run `{name}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{name}` failed: {}",
        said.trim().lines().last().unwrap_or_default()
    );
    Ok(())
}
