//! The wheel of the package that carries the pin, llama-cpp-python, with the series.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{below, replace_in};
use crate::build::cmake::{self, Build, commit_label};
use crate::build::lock::{Lock, Registry};
use crate::build::patch::{Accepts, Series};
use crate::build::source::{self, Source};
use crate::build::tree::{self, Overlay};
use crate::group::Group;
use crate::hint::Hint as _;
use crate::repo::Repo;
use crate::signals;

const PACKAGE: &str = "llama-cpp-python";

/// A local version of Python: it ranks after the original, and satisfies every requirement that the original satisfies.
const LABEL: &str = concat!("+hugepages.", env!("CARGO_PKG_VERSION"));

/// Builds the wheel in `target/python/`, and returns its path.
pub fn build(repo: &Repo) -> Result<PathBuf> {
    let lock = repo.lock()?;
    if (lock.registry, lock.package.as_str()) != (Registry::Pip, PACKAGE) {
        return Err(anyhow!(
            "the pinned llama.cpp is not from {PACKAGE}, but from {}",
            lock.package
        ))
        .hint(&format!(
            "pin it with \"cargo xtask vendor bump VERSION --registry pip --package {PACKAGE}\""
        ));
    }
    cmake::check()?;
    // Before the first temporary file, so that an interrupted command also removes its files.
    let interrupted = signals::catch()?;
    let dir = repo.target().join("python");
    fs::create_dir_all(&dir).with_context(|| format!("cannot write `{}`", dir.display()))?;
    let dir = dir.canonicalize()?;
    let pristine = unpack(&lock, &dir)?;
    let package = dir.join("package");
    let series = Series::read(repo.patches().root())?;
    let overlay = overlay(repo, &lock, &series, &pristine)?;
    tree::sync(&pristine, &overlay, &package)?;
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");

    let scratch = scratch(&dir)?;
    let commit = commit_label(
        &pinned(&lock, &package),
        Some((env!("CARGO_PKG_VERSION"), &series)),
    );
    let build = Build {
        dir: &dir,
        commit: &commit,
        targets: &[],
        args: &[],
    };
    compile(&build, &package, scratch.path(), &interrupted)?;
    let wheel = only_wheel(scratch.path())?.context("pip built no wheel")?;
    for old in wheels(&dir)? {
        fs::remove_file(&old).with_context(|| format!("cannot remove `{}`", old.display()))?;
    }
    let place = dir.join(wheel.file_name().context("a wheel has a name")?);
    fs::rename(&wheel, &place).with_context(|| format!("cannot write `{}`", place.display()))?;
    Ok(place)
}

/// The whole package, downloaded if it is not in `dir`. The build's own cache contains only its llama.cpp.
fn unpack(lock: &Lock, dir: &Path) -> Result<PathBuf> {
    let pristine = dir.join("pristine").join(&lock.sha256);
    if pristine.is_dir() {
        return Ok(pristine);
    }
    let scratch = scratch(dir)?;
    let archive = lock.carrier().download(scratch.path())?;
    let found = source::sha256(&archive)?;
    ensure!(
        found == lock.sha256,
        "sha256 mismatch of {} {}: found {found}, expected {}",
        lock.package,
        lock.version,
        lock.sha256
    );
    let tree = scratch.path().join("tree");
    source::unpack(&archive, Path::new(""), &tree)
        .with_context(|| format!("cannot unpack `{}`", archive.display()))?;
    fs::create_dir_all(dir.join("pristine"))?;
    fs::rename(&tree, &pristine)
        .with_context(|| format!("cannot write `{}`", pristine.display()))?;
    Ok(pristine)
}

/// The files that differ from those of the package: its llama.cpp, its mirror of `llama_model_params`, its version.
fn overlay(repo: &Repo, lock: &Lock, series: &Series, pristine: &Path) -> Result<Overlay> {
    let (files, _) = series.overlay(&pristine.join(&lock.subdir), &Accepts::Pin)?;
    let mut overlay: Overlay = below(&lock.subdir, files).collect();

    let own = repo.patches().root().join(PACKAGE);
    let own = Series::read(&own).context("patches/llama-cpp-python")?;
    // Another version of the package has other files. Its hunks go where exactly their context is.
    for hunk in own.attempt(pristine, Vec::new())? {
        if hunk.placed.fails() {
            return Err(anyhow!(
                "patch {PACKAGE}/{}: {}: the hunk at line {} {}",
                hunk.patch,
                hunk.path.display(),
                hunk.line,
                hunk.placed
            ))
            .hint("compare `llama_model_params` of the package with include/llama.h, and write the patch again");
        }
    }
    let (files, _) = own.overlay(pristine, &Accepts::Others(Vec::new()))?;
    overlay.extend(files);

    let version = |label: &str| format!("__version__ = \"{}{label}\"\n", lock.version);
    let file = "llama_cpp/__init__.py";
    let content = replace_in(pristine, file, &version(""), &version(LABEL))?;
    overlay.insert(file.into(), content);
    Ok(overlay)
}

/// llama.cpp in the package.
fn pinned(lock: &Lock, package: &Path) -> Source {
    Source {
        dir: package.join(&lock.subdir),
        commit: Some(lock.commit.clone()),
        accepts: Accepts::Pin,
    }
}

/// Runs the build of the package. pip provides the tools that it names, in an environment of their own.
fn compile(build: &Build<'_>, package: &Path, to: &Path, interrupted: &AtomicBool) -> Result<()> {
    let mut args = Vec::new();
    for (name, value) in build.definitions()? {
        let value = value.into_string();
        let value = value.map_err(|_| anyhow!("the value of {name} is not UTF-8"))?;
        args.push(format!("-D{name}={value}"));
    }
    let mut args = shell_words::join(args);
    // The arguments of the user follow, so they win.
    if let Ok(given) = std::env::var("CMAKE_ARGS") {
        args.extend([" ", &given]);
    }
    args.extend([" ", &shell_words::join(cmake::extra_args()?)]);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "wheel", "--disable-pip-version-check"])
        .args(["--no-deps", "--wheel-dir"])
        .arg(to)
        .arg(format!(
            "--config-settings=build-dir={}",
            build.dir.join("build").display()
        ))
        .arg(package)
        .env("CMAKE_ARGS", args)
        .envs(build.environment())
        // The environment of the build is there too, and a killed build must not leave it behind.
        .env("TMPDIR", to)
        .stdin(Stdio::null())
        // Standard output is for the path of the wheel.
        .stdout(io::stderr().as_fd().try_clone_to_owned()?);
    if std::env::var_os("CMAKE_BUILD_PARALLEL_LEVEL").is_none() {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        pip.env("CMAKE_BUILD_PARALLEL_LEVEL", jobs.to_string());
    }
    match Group::spawn(&mut pip)?.wait(interrupted)? {
        0 => Ok(()),
        _ => bail!("pip could not build the wheel: see its output"),
    }
}

fn scratch(dir: &Path) -> Result<tempfile::TempDir> {
    let scratch = tempfile::Builder::new().prefix(".wheel-").tempdir_in(dir);
    scratch.with_context(|| format!("cannot write `{}`", dir.display()))
}

fn only_wheel(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(wheels(dir)?.pop())
}

fn wheels(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))?;
    let paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|it| it == "whl");
    Ok(paths.into_iter().filter(is_wheel).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches");
        fs::read_to_string(root.join(path)).unwrap()
    }

    /// The type in Python of a type in C.
    fn in_python(kind: &str, array: Option<&str>) -> String {
        let kind = match kind {
            "bool" | "char" | "size_t" => format!("ctypes.c_{kind}"),
            "int32_t" | "uint32_t" | "uint64_t" => {
                format!("ctypes.c_{}", kind.trim_end_matches("_t"))
            }
            kind if kind.starts_with("enum ") => "ctypes.c_int".to_owned(),
            other => panic!("{other}"),
        };
        match array {
            Some(length) => format!("{kind} * {length}"),
            None => kind,
        }
    }

    #[test]
    fn the_mirror_in_python_has_the_fields_of_the_struct_in_c() {
        let header = read("files/ggml/include/ggml-hugepages.h");
        let (_, rest) = header
            .split_once("struct ggml_hugepages_params {\n")
            .unwrap();
        let (body, _) = rest.split_once("};").unwrap();
        let in_c = body.lines().map(|line| {
            let (declaration, _) = line.trim().split_once(';').unwrap();
            let (kind, name) = declaration.rsplit_once(' ').unwrap();
            let (name, array) = match name.split_once('[') {
                Some((name, length)) => (name, Some(length.trim_end_matches(']'))),
                None => (name, None),
            };
            format!("(\"{name}\", {}),", in_python(kind.trim(), array))
        });

        let mirror = read("llama-cpp-python/files/llama_cpp/_hugepages.py");
        let (_, rest) = mirror.split_once("_fields_ = [\n").unwrap();
        let (body, _) = rest.split_once("\n    ]").unwrap();
        let in_python: Vec<_> = body.lines().map(|line| line.trim().to_owned()).collect();
        assert_eq!(in_c.collect::<Vec<_>>(), in_python);
    }
}
