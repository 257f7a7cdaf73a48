//! A project outside of this repository builds with the library, with the compilers and flags of distributions.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::or_skip;

/// Calls the C++ code through the shim, and needs no model.
const PROGRAM: &str = r#"
fn main() {
    llama_hugepages::ModelParams::from_env().expect("the variables are valid");
    println!("{}", llama_hugepages::report().expect("an empty report"));
}
"#;

/// Builds a program with the library, and runs the program.
fn builds_and_runs(name: &str, variables: &[(&str, &str)]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("packaging")
        .join(name);
    fs::create_dir_all(dir.join("src")).expect("the target folder can be written");
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         llama-hugepages = {{ path = {root:?}, default-features = false, features = [\"native\", \"openmp\"] }}\n"
    );
    fs::write(dir.join("Cargo.toml"), manifest).expect("the folder is ours");
    fs::write(dir.join("src/main.rs"), PROGRAM).expect("the folder is ours");
    fs::copy(Path::new(root).join("Cargo.lock"), dir.join("Cargo.lock"))
        .expect("the folder is ours");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet"])
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .envs(variables.iter().copied())
        .output()
        .expect("cargo can be run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
#[ignore = "long: make test-full"]
fn flags_for_link_time_optimization_give_a_program_that_runs() {
    let flags = "-flto=auto";
    builds_and_runs("lto", &[("CFLAGS", flags), ("CXXFLAGS", flags)]);
}

#[test]
#[ignore = "long: make test-full"]
fn clang_gives_a_program_that_runs() {
    let found = Command::new("clang++").arg("--version").output();
    or_skip!(found.map_err(|error| format!("clang++ cannot be run: {error}")));
    builds_and_runs("clang", &[("CC", "clang"), ("CXX", "clang++")]);
}
