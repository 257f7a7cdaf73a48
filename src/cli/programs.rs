//! The programs that this one starts.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One in the folder of this one, or at a path from there.
pub fn beside(path: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program lies")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(path))
}

/// What was run, as it could be typed again.
pub fn own_command() -> String {
    let quoted = |arg: String| {
        if arg.contains(' ') {
            format!("'{arg}'")
        } else {
            arg
        }
    };
    let arguments: Vec<_> = env::args().skip(1).map(quoted).collect();
    format!("hugepages {}", arguments.join(" "))
}
