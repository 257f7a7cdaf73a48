//! Packages for other machines: the tarball and the Debian package. Both contain the same tree, and two builds of the same programs
//! give the same bytes.
//!
//! ```text
//! bin/hugepages, llama-server            links, so that each program finds the other and the library in its own folder
//! lib/llama-hugepages/                   the programs, llama.cpp's libraries, and the library for LD_PRELOAD
//! lib/{systemd/system,sysusers.d,tmpfiles.d}/
//! share/{man,bash-completion,fish,zsh}/
//! share/doc/llama-hugepages/             licences, SBOM, documentation
//! ```
//! systemd, man and the shells read all of these folders below /usr and below /usr/local.

pub mod deb;
mod manual;
pub mod tarball;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::source::sha256;
use crate::hint::Hint as _;
use crate::release::{
    self, NAME, PRELOAD, PROGRAMS, WORKER, copy, copy_as, empty, libraries, make, strip, walk,
    write, write_notices,
};
use crate::repo::Repo;
use crate::run::output;

const SUMS: &str = "SHA256SUMS";
const UNITS: [&str; 3] = [
    "llama-hugepages-pool.service",
    "llama-hugepages-store.service",
    "llama-server@.service",
];
const WORKER_UNIT: &str = "ggml-rpc-server@.service";
/// Completions of the tool: the shell, and the file. Those of the server come from llama.cpp, for bash only.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/hugepages"),
    ("fish", "fish/vendor_completions.d/hugepages.fish"),
    ("zsh", "zsh/site-functions/_hugepages"),
];

/// Copies everything that a package contains into an empty folder `root`, below `prefix`. The programs are in `programs`.
fn stage(repo: &Repo, programs: &Path, root: &Path, prefix: &str) -> Result<PathBuf> {
    empty(root)?;
    let prefix = root.join(prefix);
    let private = prefix.join("lib").join(NAME);
    let names = release::programs(programs);
    for name in &names {
        copy(&programs.join(name), &private, 0o755).hint("make build")?;
        strip(&private.join(name))?;
        make(&prefix.join("bin"))?;
        symlink(
            format!("../lib/{NAME}/{name}"),
            prefix.join("bin").join(name),
        )?;
    }
    let preload = programs.join(PRELOAD);
    for library in libraries(programs)?.into_iter().chain([preload]) {
        copy(&library, &private, 0o644).hint("make build")?;
        strip(&private.join(library.file_name().context("no file name")?))?;
    }

    let systemd = repo.root().join("deploy/systemd");
    let worker = names.contains(&WORKER).then_some(WORKER_UNIT);
    for unit in UNITS.into_iter().chain(worker) {
        copy(
            &systemd.join(unit),
            &prefix.join("lib/systemd/system"),
            0o644,
        )?;
    }
    for kind in ["sysusers", "tmpfiles"] {
        copy_as(
            &systemd.join(format!("{NAME}.{kind}.conf")),
            &prefix.join(format!("lib/{kind}.d/{NAME}.conf")),
            0o644,
        )?;
    }

    let share = prefix.join("share");
    let [server, tool] = PROGRAMS.map(|name| private.join(name));
    let worker = worker.map(|_| private.join(WORKER));
    manual::write_all(&server, &tool, worker.as_deref(), &share.join("man/man1"))?;
    for (shell, file) in COMPLETIONS {
        let text = output(Command::new(&tool).args(["completions", shell]))?;
        write(&share.join(file), &text)?;
    }
    let text = output(Command::new(&server).arg("--completion-bash"))?;
    write(
        &share.join("bash-completion/completions/llama-server"),
        &text,
    )?;

    let doc = share.join("doc").join(NAME);
    write_notices(repo, &doc)?;
    document(repo, &doc)?;
    Ok(prefix)
}

/// Copies the documentation, at paths that keep its links valid.
fn document(repo: &Repo, doc: &Path) -> Result<()> {
    let mut files = vec![
        PathBuf::from("README.md"),
        PathBuf::from("CHANGELOG.md"),
        PathBuf::from("deploy/systemd/README.md"),
    ];
    for entry in fs::read_dir(repo.root().join("docs"))? {
        files.push(Path::new("docs").join(entry?.file_name()));
    }
    for file in files {
        copy_as(&repo.root().join(&file), &doc.join(&file), 0o644)?;
    }
    Ok(())
}

/// Writes `SHA256SUMS` for all packages and lists in a folder.
fn sum(dir: &Path) -> Result<()> {
    let mut text = String::new();
    for path in walk(dir)? {
        let name = path.file_name().context("no file name")?.to_string_lossy();
        let is_package = [".tar.gz", ".deb", ".cdx.json"]
            .iter()
            .any(|it| name.ends_with(it));
        if is_package && path.parent() == Some(dir) {
            writeln!(text, "{}  {name}", sha256(&path)?)?;
        }
    }
    write(&dir.join(SUMS), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_cover_the_packages_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.deb", "a.tar.gz", "a.cdx.json", "note.txt"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("old")).unwrap();
        fs::write(dir.path().join("old/c.deb"), "").unwrap();
        sum(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(SUMS)).unwrap();
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split("  ").nth(1))
            .collect();
        assert_eq!(names, ["a.cdx.json", "a.tar.gz", "b.deb"]);
    }

    #[test]
    fn the_deployment_guide_finds_the_guide_to_the_units() {
        let repo = Repo::new(None);
        let dir = tempfile::tempdir().unwrap();
        document(&repo, dir.path()).unwrap();
        let deploying = fs::read_to_string(dir.path().join("docs/deploying.md")).unwrap();
        assert!(deploying.contains("(../deploy/systemd/README.md)"));
        assert!(dir.path().join("deploy/systemd/README.md").is_file());
    }
}
