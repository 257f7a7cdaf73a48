//! A Python with the packages that clients of the server use.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use super::{programs, target_dir};

/// Packages for pip, and the modules that they provide.
const PACKAGES: [(&str, &str); 2] = [("openai>=2,<3", "openai"), ("selenium>=4,<5", "selenium")];

/// The interpreter of a venv with all packages, made once for all tests.
pub fn python() -> Result<PathBuf, String> {
    let dir = target_dir().join("venv");
    let python = dir.join("bin/python");
    let lock = File::create(target_dir().join("venv.lock")).expect("target/ can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be waited for");
    let modules = PACKAGES.map(|(_, module)| module).join(", ");
    let is_complete = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if is_complete {
        return Ok(python);
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&dir))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet"])
        .arg("--disable-pip-version-check")
        .args(PACKAGES.map(|(package, _)| package)))?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    programs::run(command).map_err(|said| {
        let last = said.lines().last().unwrap_or_default();
        format!("no venv with the packages of the clients: {last}")
    })
}

/// Runs a script of `tests/` to its end. Returns the JSON that it prints. An error is its standard error.
pub fn run_script(python: &Path, name: &str, args: &[&str]) -> Result<Value, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name);
    let output = Command::new(python)
        .arg(script)
        .args(args)
        .output()
        .expect("python can be started");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}
