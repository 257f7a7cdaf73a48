//! Runs `cargo xtask` like a person or CI, and checks its exit codes and its output.

mod patches;
mod support;
mod vendor;
