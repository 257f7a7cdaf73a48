//! Servers with the backends Vulkan and BLAS: stock, and ours with its features. The tests compare them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::programs::{self, Kind};
use crate::repo::Repo;

/// Builds both servers, and returns their paths.
pub fn build(repo: &Repo) -> Result<Vec<PathBuf>> {
    let mut servers = programs::build(repo, Kind::BackendsStock)?;
    let target = repo.target().join("backends");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--bin", "llama-server"])
        .args(["--features", "blas,vulkan"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(repo.root())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the build of our server failed");
    servers.push(target.join("release/llama-server"));
    Ok(servers)
}
