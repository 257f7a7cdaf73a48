//! `cargo xtask` as a person or CI runs it: the program, its exit codes and what it prints.

mod patches;
mod support;
mod vendor;
