//! Directives of a build script for Cargo: one helper each.
//!
//! Outside a build script (xtask, tests) the directives are not printed.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Cargo's variables for a build script.
pub struct Package {
    /// The directory of `Cargo.toml`.
    pub root: PathBuf,
    /// The only directory that a build writes to.
    pub out: PathBuf,
    /// Our own version.
    pub version: String,
}

impl Package {
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| {
            env::var_os(name).with_context(|| {
                format!("variable `{name}` is not set: run this program with cargo")
            })
        };
        Ok(Self {
            root: var("CARGO_MANIFEST_DIR")?.into(),
            out: var("OUT_DIR")?.into(),
            version: var("CARGO_PKG_VERSION")?.to_string_lossy().into_owned(),
        })
    }
}

/// Reads and watches a variable. An empty variable counts as not set.
pub fn env(name: &str) -> Option<OsString> {
    directive("rerun-if-env-changed", name);
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Watches a file, or a directory with all its files.
pub fn rerun_if_changed(path: &Path) {
    directive("rerun-if-changed", path.display());
}

pub fn link_search(dir: &Path) {
    directive(
        "rustc-link-search",
        format_args!("native={}", dir.display()),
    );
}

/// Links an archive of the CMake build. Without `-bundle`, each rlib would contain a copy of 40 MB.
pub fn link_static(name: &str) {
    directive("rustc-link-lib", format_args!("static:-bundle={name}"));
}

pub fn link_shared(name: &str) {
    directive("rustc-link-lib", format_args!("dylib={name}"));
}

/// Lets the programs of this package find shared libraries in their own folder.
pub fn find_libraries_beside_programs() {
    directive("rustc-link-arg-bins", "-Wl,-rpath,$ORIGIN");
}

/// Tells the build scripts of crates that depend on this one, as `DEP_LLAMA_*`.
pub fn metadata(key: &str, value: &Path) {
    directive("metadata", format_args!("{key}={}", value.display()));
}

/// Cargo prints the line and continues.
pub fn warning(message: &str) {
    directive("warning", message);
}

/// Cargo prints these lines instead of the script's whole output, and fails.
pub fn error(message: &str) {
    for line in message.lines() {
        directive("error", line);
    }
}

fn directive(name: &str, value: impl Display) {
    if env::var_os("OUT_DIR").is_some() {
        println!("cargo::{name}={value}");
    }
}
