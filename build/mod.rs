//! The steps of the build, one file each.
//!
//! `build.rs` runs them all; `xtask` mounts the same files for what it shares: fetching the source, checking the
//! series, building stock. So nothing here reads a build script's environment by itself, except through `cargo`.
//! `bindings` and `shim` serve the Rust side only and are mounted by `build.rs`.

pub mod cargo;
pub mod cmake;
pub mod link;
pub mod lock;
pub mod patch;
pub mod source;
pub mod tree;
pub mod ui;

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
