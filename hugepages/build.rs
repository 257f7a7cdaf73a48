//! With the feature `cpu-variants`, the tool finds llama.cpp's shared libraries in its own folder.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CPU_VARIANTS").is_some() {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
    }
}
