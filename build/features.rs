//! Cargo's features as options of CMake.

use std::env;

use anyhow::{Result, ensure};

use crate::build::vulkan;

/// A feature, its options for CMake, and whether they apply if the feature is on.
///
/// Upstream finds OpenMP and OpenSSL itself, and builds for this CPU unless the build must be reproducible. So the features that are
/// on by default only remove.
const OPTIONS: &[(&str, &[&str], bool)] = &[
    ("NATIVE", &["-DGGML_NATIVE=OFF"], false),
    (
        CPU_VARIANTS,
        &[
            "-DGGML_BACKEND_DL=ON",
            "-DGGML_CPU_ALL_VARIANTS=ON",
            "-DBUILD_SHARED_LIBS=ON",
            // Each library finds the others in its own folder, by names without a version. CMake would reserve room for another path in a
            // RUNPATH of the build, with an empty entry, which means the working directory.
            "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
            "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
        ],
        true,
    ),
    ("OPENMP", &["-DGGML_OPENMP=OFF"], false),
    ("OPENSSL", &["-DLLAMA_OPENSSL=OFF"], false),
    ("CUDA", &["-DGGML_CUDA=ON"], true),
    ("VULKAN", &["-DGGML_VULKAN=ON"], true),
    ("HIP", &["-DGGML_HIP=ON"], true),
    ("RPC", &["-DGGML_RPC=ON"], true),
    (
        "BLAS",
        &["-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS"],
        true,
    ),
];

pub const CPU_VARIANTS: &str = "CPU_VARIANTS";

pub fn is_on(feature: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{feature}")).is_some()
}

pub fn options() -> Vec<&'static str> {
    let chosen = OPTIONS.iter().filter(|(name, _, on)| is_on(name) == *on);
    chosen
        .flat_map(|(_, options, _)| *options)
        .copied()
        .collect()
}

/// Refuses systems for which the libraries cannot be linked.
pub fn check() -> Result<()> {
    let of_target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    ensure!(
        of_target("OS") == "linux",
        "llama-hugepages needs Linux, because other systems have no HugeTLB pages"
    );
    ensure!(
        of_target("ENV") == "gnu",
        "llama-hugepages needs a target with glibc, such as {}-unknown-linux-gnu: Rust links musl statically, and llama.cpp's \
         libraries then lack their C++ library",
        of_target("ARCH")
    );
    ensure!(
        !(is_on("NATIVE") && is_on(CPU_VARIANTS)),
        "the features `native` and `cpu-variants` exclude each other: the first builds for this CPU, the second for all\n\
         hint: cargo build --release --no-default-features --features cpu-variants,openmp,openssl,server,ui"
    );
    if is_on("VULKAN") {
        vulkan::check()?;
    }
    Ok(())
}
