//! The programs that this one starts.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One in the folder of this one, or at a path from there.
pub fn beside(path: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program lies")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(path))
}
