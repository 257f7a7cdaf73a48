//! A copy of the crate `llama-cpp-sys-2` with the series in its llama.cpp, for `[patch.crates-io]`.
//!
//! The crate finds llama.cpp only in its own folder, and Cargo replaces a crate only as a whole. So a copy is needed, and a small crate
//! of ours cannot do the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Deserialize;

use super::{below, replace_in};
use crate::build::carrier::Carrier;
use crate::build::lock::Registry;
use crate::build::patch::{Accepts, Series};
use crate::build::tree::Overlay;
use crate::build::{source, tree};
use crate::hint::{self, Hint as _};
use crate::patches::attempt::Attempt;
use crate::repo::Repo;
use crate::{signals, vendor};

const CRATE: &str = "llama-cpp-sys-2";
/// The place of llama.cpp in the crate.
const SUBDIR: &str = "llama.cpp";
/// The sample program, whose lock file names the version that the tests use.
const SAMPLE_LOCK: &str = "examples/llama-cpp-2/Cargo.lock";

/// Build metadata of the version. Our own version is not in it, because lock files contain it.
const LABEL: &str = "+hugepages";

/// The copy, or the reason why there is none.
pub struct Copied {
    /// `None` if a hunk fails.
    pub dir: Option<PathBuf>,
    pub attempt: Attempt,
    /// Folders of programs that the crate omits.
    pub omitted: BTreeSet<PathBuf>,
}

/// Copies `version` of the crate to `target/sys-crate/`. By default, it is the version of the sample program.
pub fn copy(repo: &Repo, version: Option<&str>) -> Result<Copied> {
    let version = version.map_or_else(|| sample_version(repo), |version| Ok(version.to_owned()))?;
    // Before the first temporary file, so that an interrupted command also removes its files.
    let interrupted = signals::catch()?;
    // Git merges hunks only with the source of the pin.
    vendor::fetch(repo)?;
    let parent = repo.target().join("sys-crate");
    fs::create_dir_all(&parent).with_context(|| format!("cannot write `{}`", parent.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix(".sys-crate-")
        .tempdir_in(&parent)?;
    let pristine = scratch.path().join("crate");
    let archive = download(&version, scratch.path())?;
    source::unpack(&archive, Path::new(""), &pristine)
        .with_context(|| format!("cannot unpack `{}`", archive.display()))?;

    let llama = pristine.join(SUBDIR);
    let mut series = Series::read(repo.patches().root())?;
    series.omit_missing_programs(&llama)?;
    let pins = repo.sources()?;
    let attempt = Attempt::of(&series, repo, &llama, pins.clone())?;
    let omitted = series.omitted.clone();
    if attempt.fails() {
        return Ok(Copied {
            dir: None,
            attempt,
            omitted,
        });
    }
    let (files, _) = series.overlay(&llama, &Accepts::Others(pins))?;
    let mut overlay: Overlay = below(Path::new(SUBDIR), files).collect();
    overlay.extend(name_version(&pristine, &version, &series)?);
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");

    let dir = parent.join(format!("{CRATE}-{version}"));
    if dir.exists() {
        // Files that stay the same keep their times, so Cargo does not compile the copy again.
        tree::sync(&pristine, &overlay, &dir)?;
    } else {
        let new = scratch.path().join("copy");
        tree::sync(&pristine, &overlay, &new)?;
        fs::rename(&new, &dir).with_context(|| format!("cannot write `{}`", dir.display()))?;
    }
    Ok(Copied {
        dir: Some(dir),
        attempt,
        omitted,
    })
}

/// Cargo verifies the hash of the crate.
fn download(version: &str, scratch: &Path) -> Result<PathBuf> {
    let dir = scratch.join("download");
    fs::create_dir(&dir)?;
    let carrier = Carrier {
        registry: Registry::Cargo,
        package: CRATE,
        version,
        sha256: None,
    };
    carrier.download(&dir).or_else(|why| {
        let text = format!("{why:#}");
        Err(anyhow!("{}", hint::split(&text).0))
            .hint(&format!("\"cargo info {CRATE}\" prints the newest version"))
    })
}

/// The files that name the version: Cargo then shows which crate it uses, and a store never shares buffers between versions of ggml.
fn name_version(
    pristine: &Path,
    version: &str,
    series: &Series,
) -> Result<[(PathBuf, Vec<u8>); 2]> {
    let manifest = "Cargo.toml";
    let field = |label: &str| format!("\nversion = \"{version}{label}\"\n");
    // The manifest that Cargo writes to a crate has a version of its dependencies in a table of their own, in the same form.
    let text = fs::read_to_string(pristine.join(manifest))?;
    let head = format!("\nname = \"{CRATE}\"{}", field(""));
    ensure!(
        text.contains(&head),
        "`{manifest}` of the crate does not begin with its name and its version"
    );
    let new = format!("\nname = \"{CRATE}\"{}", field(LABEL));
    let manifest = (
        manifest.into(),
        replace_in(pristine, manifest, &head, &new)?,
    );

    let lists = Path::new(SUBDIR).join("CMakeLists.txt");
    let old = fs::read_to_string(pristine.join(&lists))?;
    let new = format!(
        "# The crate's build script asks git, which would return the commit of the repository around the copy.\n\
         set(GIT_EXE OFF CACHE STRING \"\")\n\
         set(LLAMA_BUILD_COMMIT \"{CRATE}-{version}{LABEL}-{}-{}\")\n\
         {old}",
        env!("CARGO_PKG_VERSION"),
        series.id()
    );
    Ok([manifest, (lists, new.into_bytes())])
}

/// The part of a lock file of Cargo that names the version of a crate.
#[derive(Deserialize)]
struct LockFile {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
}

fn sample_version(repo: &Repo) -> Result<String> {
    let path = repo.root().join(SAMPLE_LOCK);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let lock: LockFile =
        toml::from_str(&text).with_context(|| format!("cannot read `{}`", path.display()))?;
    let found = lock.package.iter().find(|it| it.name == CRATE);
    let found = found.with_context(|| format!("`{}` does not name {CRATE}", path.display()))?;
    let version = found.version.split('+').next().unwrap_or_default();
    Ok(version.to_owned())
}
