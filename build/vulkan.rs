//! Whether Vulkan's headers are new enough: CMake does not ask, and the compiler would fail after minutes.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

/// An extension that llama.cpp uses. The headers have it since 1.3.272.
const EXTENSION: &str = "VK_EXT_layer_settings";

/// Checks the headers that CMake will find.
pub fn check() -> Result<()> {
    let sdk = env::var_os("VULKAN_SDK").map(|sdk| PathBuf::from(sdk).join("include"));
    let places = sdk
        .into_iter()
        .chain(["/usr/include", "/usr/local/include"].map(PathBuf::from));
    let mut headers = places.map(|dir| dir.join("vulkan/vulkan_core.h"));
    let Some(header) = headers.find(|file| file.is_file()) else {
        bail!(
            "Vulkan's headers are missing\nhint: run \"scripts/setup --test-full\", or set VULKAN_SDK to the folder of an SDK"
        );
    };
    let text = fs::read_to_string(&header)
        .with_context(|| format!("cannot read `{}`", header.display()))?;
    ensure!(
        text.contains(EXTENSION),
        "`{}` is older than Vulkan 1.3.272\nhint: set VULKAN_SDK to the folder of a newer SDK",
        header.display()
    );
    Ok(())
}
