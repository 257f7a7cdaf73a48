//! A Python with the packages that clients of the server use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{programs, target_dir};

/// Packages for pip, and the modules that they provide.
const PACKAGES: [(&str, &str); 2] = [("openai>=2,<3", "openai"), ("selenium>=4,<5", "selenium")];

const PODMAN_COMPOSE: &str = "1.6.0";

/// The interpreter of a venv with all packages, made once for all tests.
pub fn python() -> Result<PathBuf, String> {
    let modules = PACKAGES.map(|(_, module)| module).join(", ");
    venv("venv", &format!("import {modules}"), |pip| {
        pip.args(PACKAGES.map(|(package, _)| package));
    })
}

/// The interpreter of a venv with the wheel of `cargo xtask python-wheel`, its server included.
pub fn with_wheel() -> Result<PathBuf, String> {
    let dir = target_dir().join("python");
    let wheels = fs::read_dir(&dir).into_iter().flatten().flatten();
    let mut wheels = wheels.map(|entry| entry.path());
    let wheel = wheels
        .find(|path| path.extension().is_some_and(|it| it == "whl"))
        .ok_or_else(|| {
            format!(
                "{} contains no wheel: `cargo xtask python-wheel` builds it",
                dir.display()
            )
        })?;
    // Two builds of the same version have the same name.
    let content = fs::read(&wheel).expect("the wheel can be read");
    let digest = Sha256::digest(content);
    let hex = |text: String, byte: &u8| text + &format!("{byte:02x}");
    let hash = digest.iter().fold(String::new(), hex);
    let stamp = "open(sys.prefix + '/wheel').read()";
    let check = format!("import sys, llama_cpp.server.app; exit({stamp} != '{hash}')");
    let python = venv("venv-wheel", &check, |pip| {
        pip.arg(format!("{}[server]", wheel.display()));
    })?;
    fs::write(target_dir().join("venv-wheel/wheel"), hash).expect("just made");
    Ok(python)
}

/// The interpreter of a venv with Helm and the API schemas of Kubernetes.
pub fn with_helm() -> Result<PathBuf, String> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/requirements.txt");
    let file = requirements.display();
    let check = format!(
        "import importlib.metadata as it, helm_python, kubernetes_validate\n\
         for line in open('{file}'):\n    name, version = line.strip().split('==')\n    assert it.version(name) == version"
    );
    venv("venv-deploy", &check, |pip| {
        // The source package of Helm would need a compiler for Go.
        pip.args(["--only-binary", ":all:", "--requirement"])
            .arg(&requirements);
    })
}

/// podman-compose, in a venv of its own.
pub fn podman_compose() -> Result<PathBuf, String> {
    let check = format!(
        "import importlib.metadata as it\nassert it.version('podman-compose') == '{PODMAN_COMPOSE}'"
    );
    let python = venv("venv-compose", &check, |pip| {
        pip.arg(format!("podman-compose=={PODMAN_COMPOSE}"));
    })?;
    Ok(python.with_file_name("podman-compose"))
}

/// A venv in `target/`, made again if `check` fails in it.
fn venv(name: &str, check: &str, packages: impl FnOnce(&mut Command)) -> Result<PathBuf, String> {
    let dir = target_dir().join(name);
    let python = dir.join("bin/python");
    let lock = File::create(dir.with_extension("lock")).expect("target/ can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be waited for");
    let is_complete = Command::new(&python)
        .args(["-c", check])
        .output()
        .is_ok_and(|output| output.status.success());
    if is_complete {
        return Ok(python);
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&dir))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet"])
        .arg("--disable-pip-version-check");
    packages(&mut pip);
    run(&mut pip)?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    programs::run(command).map_err(|said| {
        let last = said.lines().last().unwrap_or_default();
        format!("no venv with the packages of the tests: {last}")
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
