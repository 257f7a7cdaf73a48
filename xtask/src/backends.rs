//! Servers with the backends Vulkan and BLAS: stock, and ours with its features. The tests compare them.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::programs::{self, Kind};
use crate::repo::Repo;

/// An extension that llama.cpp uses. The headers have it since 1.3.272.
const EXTENSION: &str = "VK_EXT_layer_settings";

/// Checks what CMake would find missing only after minutes.
pub fn check() -> Result<()> {
    let sdk = env::var_os("VULKAN_SDK").map(|sdk| PathBuf::from(sdk).join("include"));
    let places = sdk
        .into_iter()
        .chain(["/usr/include", "/usr/local/include"].map(PathBuf::from));
    let mut headers = places.map(|dir| dir.join("vulkan/vulkan_core.h"));
    let Some(header) = headers.find(|file| file.is_file()) else {
        bail!("Vulkan's headers are missing\nhint: run \"scripts/setup --test-full\"");
    };
    let text = fs::read_to_string(&header)
        .with_context(|| format!("cannot read `{}`", header.display()))?;
    ensure!(
        text.contains(EXTENSION),
        "`{}` is older than 1.3.272\nhint: set VULKAN_SDK to the folder of a newer SDK",
        header.display()
    );
    Ok(())
}

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
