//! `hugepages man`: one page for the tool and one for each command, from the texts of `--help`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes the man pages to a directory.
pub fn write(command: clap::Command, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("cannot write man pages to `{}`", dir.display()))
}
