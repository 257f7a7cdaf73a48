//! `llama-hugepages_VERSION-REVISION_ARCH.deb`, from `deploy/debian/`.
//!
//! dpkg's programs do the work. cargo-deb would need a second description of the same tree, in Cargo.toml.

use std::env;
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{stage, sum};
use crate::hint::Hint as _;
use crate::release::{NAME, Origin, VERSION, commit, copy, empty, make, remove, walk, write};
use crate::repo::Repo;
use crate::run::{captured, output, run};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Builds the package from programs that are already built, and returns its path.
pub fn build(repo: &Repo, programs: &Path, dir: &Path, revision: u32) -> Result<PathBuf> {
    // Commands run in this folder.
    let work = path::absolute(dir)?.join("deb");
    empty(&work)?;
    let architecture = output(Command::new("dpkg-architecture").arg("-qDEB_HOST_ARCH"))
        .hint("apt-get install dpkg-dev")?;
    let time = Origin::of(repo)?.time;
    let version = format!("{VERSION}-{revision}");

    let root = work.join("root");
    let usr = stage(repo, programs, &root, "usr")?;
    make(&root.join("etc").join(NAME))?;
    let maintainer = maintainer(repo)?;
    let changelog = changelog(&version, &maintainer, time)?;
    arrange(repo, &usr, &changelog)?;
    let scripts = repo.root().join("deploy/debian");
    for name in SCRIPTS {
        copy(&scripts.join(name), &root.join("DEBIAN"), 0o755)?;
    }
    let files = sums(&root)?;
    write(&root.join("DEBIAN/md5sums"), &files)?;

    write(&work.join("debian/changelog"), &changelog)?;
    copy(&scripts.join("control"), &work.join("debian"), 0o644)?;
    // Its warning does not matter: the names of our own libraries have no version.
    captured(
        Command::new("dpkg-shlibdeps")
            .current_dir(&work)
            .args(walk(&usr.join("lib").join(NAME))?),
    )?;
    let control = output(
        Command::new("dpkg-gencontrol")
            .current_dir(&work)
            .args(["-O", "-Proot"])
            .arg(format!("-Vmaintainer={maintainer}"))
            .env("SOURCE_DATE_EPOCH", time.to_string()),
    )?;
    write(&root.join("DEBIAN/control"), &control)?;

    let path = dir.join(format!("{NAME}_{version}_{}.deb", architecture.trim()));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([&root, &path])
        // Files get this time, and one thread compresses in the same way on all machines.
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .env("DPKG_DEB_THREADS_MAX", "1")
        .stdout(io::stderr()))?;
    remove(&work)?;
    sum(dir)?;
    Ok(path)
}

/// Moves files to where Debian's policy wants them.
fn arrange(repo: &Repo, usr: &Path, changelog: &str) -> Result<()> {
    let doc = usr.join("share/doc").join(NAME);
    for page in walk(&usr.join("share/man/man1"))? {
        gzip(&page)?;
    }
    fs::rename(
        usr.join("share/zsh/site-functions"),
        usr.join("share/zsh/vendor-completions"),
    )?;
    let licence = fs::read_to_string(doc.join("LICENSE"))?;
    let notice = fs::read_to_string(doc.join("NOTICE"))?;
    let on_debian = fs::read_to_string(repo.root().join("deploy/debian/copyright"))?;
    write(
        &doc.join("copyright"),
        &format!("{notice}\n{on_debian}\n{licence}"),
    )?;
    fs::remove_file(doc.join("LICENSE"))?;
    fs::remove_file(doc.join("NOTICE"))?;
    gzip(&doc.join("licences-of-crates.txt"))?;
    fs::rename(doc.join("CHANGELOG.md"), doc.join("changelog"))?;
    gzip(&doc.join("changelog"))?;
    write(&doc.join("changelog.Debian"), changelog)?;
    gzip(&doc.join("changelog.Debian"))?;
    let overrides = usr.join("share/lintian/overrides").join(NAME);
    let text = fs::read_to_string(repo.root().join("deploy/debian/lintian-overrides"))?;
    write(&overrides, &text)
}

/// The packager as Debian's tools know him, or the author of the commit.
fn maintainer(repo: &Repo) -> Result<String> {
    let named = |name: &str| env::var(name).ok().filter(|it| !it.is_empty());
    if let (Some(name), Some(address)) = (named("DEBFULLNAME"), named("DEBEMAIL")) {
        return Ok(format!("{name} <{address}>"));
    }
    commit(repo, "%an <%ae>")
        .context("no commit, whose author could be the maintainer of the package")
        .hint("set DEBFULLNAME and DEBEMAIL")
}

fn changelog(version: &str, maintainer: &str, time: u64) -> Result<String> {
    let date =
        output(Command::new("date").args(["--utc", "--rfc-email", &format!("--date=@{time}")]))?;
    Ok(format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * The changes are in changelog.gz.\n\n -- {maintainer}  {date}"
    ))
}

/// The sums for `dpkg --verify`.
fn sums(root: &Path) -> Result<String> {
    let control = root.join("DEBIAN");
    let mut names = Vec::new();
    for path in walk(root)? {
        if path.is_file() && !path.is_symlink() && !path.starts_with(&control) {
            names.push(path.strip_prefix(root)?.to_owned());
        }
    }
    output(Command::new("md5sum").current_dir(root).args(names))
}

/// Compresses a file as Debian's policy asks, without its name and time.
fn gzip(path: &Path) -> Result<()> {
    run(Command::new("gzip").args(["-9", "--no-name"]).arg(path))
}
