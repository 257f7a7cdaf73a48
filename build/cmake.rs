//! llama.cpp's CMake build, with the same flags for every Cargo profile, for our programs and for stock.

use std::ffi::OsString;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::patch::Series;
use super::source::Source;
use super::{cargo, link};

/// Upstream's build number, which a tree without history does not contain.
pub const BUILD_NUMBER: &str = "0";

/// One CMake build of a tree.
pub struct Build<'a> {
    /// The directory that holds the tree as `llama.cpp/`, and gets the build as `build/`.
    pub dir: &'a Path,
    /// The commit in `--version`.
    pub commit: &'a str,
    pub targets: &'a [&'a str],
    /// Options for CMake. Those of the environment follow, so they win.
    pub args: &'a [&'a str],
}

/// The commit in `--version`: upstream's commit, with our version and the id of the series on a patched tree. It belongs to the identity of
/// files in a store, so builds with another series share nothing.
pub fn commit_label(source: &Source, ours: Option<(&str, &Series)>) -> String {
    let upstream: String = source
        .commit
        .as_deref()
        .unwrap_or("unknown")
        .chars()
        .take(12)
        .collect();
    ours.map_or(upstream.clone(), |(version, series)| {
        format!("{upstream}+hugepages-{version}-{}", series.id())
    })
}

/// Checks the tools and the options of a build, before the download.
pub fn check() -> Result<()> {
    refuse_lto(&extra_args()?)?;
    for (variable, tool, package) in [
        ("CMAKE", "cmake", "cmake"),
        ("CXX", "c++", "build-essential"),
    ] {
        let tool = cargo::env(variable).unwrap_or(tool.into());
        // CXX may start with a wrapper, such as `ccache g++`. Flags in CXX do not reach CMake; CXXFLAGS does.
        let words = tool.to_string_lossy();
        let first = words.split_whitespace().next().unwrap_or_default();
        ensure!(
            find(&tool).is_some() || find(first.as_ref()).is_some(),
            "program `{}` not found, which builds llama.cpp\nhint: apt-get install {package}",
            tool.display()
        );
    }
    Ok(())
}

impl Build<'_> {
    /// Configures and builds; returns the build directory.
    pub fn run(&self) -> Result<PathBuf> {
        let mut extra: Vec<String> = self.args.iter().map(|&arg| arg.to_owned()).collect();
        extra.extend(extra_args()?);
        let launcher = launcher();
        let generator = cargo::env("CMAKE_GENERATOR")
            .or_else(|| find("ninja".as_ref()).map(|_| "Ninja".into()));
        self.forget_other_options(&format!("{generator:?} {launcher:?} {extra:?}"))?;
        link::ask(&self.dir.join("build"))?;

        let triple = triple()?;
        let mut config = cmake::Config::new(self.dir.join("llama.cpp"));
        config
            .out_dir(self.dir)
            .target(&triple.target)
            .host(&triple.host)
            // The crate would derive these flags from Cargo's profile, but the code must be the same as stock's.
            .profile("Release")
            .no_default_flags(true)
            .define("BUILD_SHARED_LIBS", "OFF")
            .define("LLAMA_BUILD_TESTS", "OFF")
            .define("LLAMA_BUILD_EXAMPLES", "OFF")
            .define("LLAMA_BUILD_APP", "OFF")
            // `ui` builds the page, and CMake embeds it.
            .define("LLAMA_BUILD_UI", "OFF")
            // A prebuilt page would need a download during the build.
            .define("LLAMA_USE_PREBUILT_UI", "OFF");
        for (name, value) in self.definitions()? {
            config.define(name, value);
        }
        if let Some(generator) = generator {
            config.generator(generator);
        }
        for (name, value) in self.environment() {
            config.env(name, value);
        }
        if env::var_os("NUM_JOBS").is_none() {
            let jobs = thread::available_parallelism().map_or(1, usize::from);
            config.env("CMAKE_BUILD_PARALLEL_LEVEL", jobs.to_string());
        }
        for arg in extra {
            config.configure_arg(arg);
        }
        // The crate takes one target, so the others are arguments of the build tool.
        let (first, others) = self.targets.split_first().context("no target to build")?;
        config.build_target(first);
        for target in others {
            config.build_arg(target);
        }
        // The crate panics instead of returning an error.
        panic::catch_unwind(AssertUnwindSafe(|| config.build())).map_err(|_| {
            anyhow!(
                "CMake build of {} failed: see its output",
                self.dir.join("llama.cpp").display()
            )
        })?;
        Ok(self.dir.join("build"))
    }

    /// Definitions that do not depend on what is built, for a build that another program configures.
    pub fn definitions(&self) -> Result<Vec<(&'static str, OsString)>> {
        let flags = |name| self.flags(cargo::env(name).unwrap_or_default());
        let mut all = vec![
            ("CMAKE_C_FLAGS", flags("CFLAGS")?),
            ("CMAKE_CXX_FLAGS", flags("CXXFLAGS")?),
            ("LLAMA_BUILD_NUMBER", BUILD_NUMBER.into()),
            ("LLAMA_BUILD_COMMIT", self.commit.into()),
            // ggml asks git, which would return the commit of our repository around the tree.
            ("GIT_EXE", "OFF".into()),
            ("GGML_BUILD_COMMIT", self.commit.into()),
            ("CMAKE_PROJECT_ggml_INCLUDE", self.write_amx_fix()?.into()),
        ];
        if let Some(launcher) = launcher() {
            all.extend([
                ("CMAKE_C_COMPILER_LAUNCHER", launcher.into()),
                ("CMAKE_CXX_COMPILER_LAUNCHER", launcher.into()),
                ("GGML_CCACHE", "OFF".into()),
            ]);
        }
        Ok(all)
    }

    /// Variables of the compiler cache. Paths relative to here: debug, release and stock builds, and other clones, share the cache.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        match launcher() {
            Some(_) => vec![
                ("CCACHE_BASEDIR", self.dir.into()),
                ("CCACHE_NOHASHDIR", "1".into()),
            ],
            None => Vec::new(),
        }
    }

    /// Makes `__FILE__` in assertions relative, so that objects contain no directory of this machine, and ccache finds
    /// them from every directory.
    fn flags(&self, mut given: OsString) -> Result<OsString> {
        let dir = self
            .dir
            .to_str()
            .with_context(|| format!("{} is not UTF-8", self.dir.display()))?;
        // Distributions pass -flto. Rust's linker cannot read such objects, and an object without it is the same for every linker.
        if given.to_str().is_some_and(|given| given.contains("-flto")) {
            given.push(" -fno-lto");
        }
        // CMake splits flags at white space.
        if !dir.contains(char::is_whitespace) {
            given.push(format!(" -fmacro-prefix-map={dir}/="));
        }
        Ok(given)
    }

    /// Disables ggml's AMX kernels for compilers that break them; the file states the reason.
    fn write_amx_fix(&self) -> Result<PathBuf> {
        let build = self.dir.join("build");
        fs::create_dir_all(&build).with_context(|| format!("cannot write {}", build.display()))?;
        let path = build.join("amx.cmake");
        fs::write(&path, include_str!("amx.cmake"))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Clears CMake's cache if the options changed, because the cache keeps removed options.
    fn forget_other_options(&self, options: &str) -> Result<()> {
        let stamp = self.dir.join("build/options");
        if fs::read_to_string(&stamp).is_ok_and(|before| before == options) {
            return Ok(());
        }
        let build = self.dir.join("build");
        let _ = fs::remove_file(build.join("CMakeCache.txt"));
        let _ = fs::remove_dir_all(build.join("CMakeFiles"));
        fs::create_dir_all(&build)?;
        fs::write(&stamp, options).with_context(|| format!("cannot write {}", stamp.display()))
    }
}

fn launcher() -> Option<&'static str> {
    find("ccache".as_ref()).map(|_| "ccache")
}

/// CMake adds these flags after all others.
fn refuse_lto(args: &[String]) -> Result<()> {
    let is_lto = |arg: &&String| {
        let name = arg.strip_prefix("-D").unwrap_or(arg);
        let name = name.split([':', '=']).next().unwrap_or_default();
        let is_on = matches!(
            arg.rsplit('=')
                .next()
                .unwrap_or_default()
                .to_uppercase()
                .as_str(),
            "ON" | "1" | "TRUE" | "YES" | "Y"
        );
        is_on && matches!(name, "GGML_LTO" | "CMAKE_INTERPROCEDURAL_OPTIMIZATION")
    };
    if let Some(arg) = args.iter().find(is_lto) {
        bail!(
            "`{arg}` cannot be used, because Rust's linker cannot read objects with link-time optimization\nhint: remove it"
        );
    }
    Ok(())
}

/// `LLAMA_HUGEPAGES_CMAKE_ARGS`, split as a shell would: `-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90`.
pub fn extra_args() -> Result<Vec<String>> {
    const NAME: &str = "LLAMA_HUGEPAGES_CMAKE_ARGS";
    let args = cargo::env(NAME).unwrap_or_default();
    let args = args
        .to_str()
        .with_context(|| format!("{NAME} is not UTF-8"))?;
    shell_words::split(args).with_context(|| format!("{NAME}: `{args}`"))
}

/// A program on PATH, or given by its path.
pub fn find(program: &std::ffi::OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

struct Triple {
    host: String,
    target: String,
}

/// From Cargo in a build script, else this machine's.
fn triple() -> Result<Triple> {
    if let (Ok(host), Ok(target)) = (env::var("HOST"), env::var("TARGET")) {
        return Ok(Triple { host, target });
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .context("cannot run `rustc -vV`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    Ok(Triple {
        host: host.to_owned(),
        target: host.to_owned(),
    })
}
