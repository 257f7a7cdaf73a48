//! The steps of the build, one file each.
//!
//! `build.rs` runs all steps. `xtask` uses the same files to fetch the source, check the series and build stock, so only
//! `cargo` reads the environment of a build script. Only `build.rs` uses `bindings` and `shim`.

pub mod cargo;
pub mod carrier;
pub mod cmake;
pub mod link;
pub mod lock;
pub mod patch;
pub mod source;
pub mod tree;
pub mod ui;
pub mod vulkan;

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
