//! Programs that this program starts.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A program in the directory of this program, or at a path relative to it.
pub fn beside(path: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the path of this program")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(path))
}

/// The command line of this process, quoted for a shell.
pub fn own_command() -> String {
    let quoted = |arg: String| {
        if arg.contains(' ') {
            format!("'{arg}'")
        } else {
            arg
        }
    };
    let arguments = env::args_os().skip(1);
    let arguments = arguments.map(|arg| arg.to_string_lossy().into_owned());
    let arguments: Vec<_> = arguments.map(quoted).collect();
    format!("hugepages {}", arguments.join(" "))
}
