//! Root file systems of this machine's distribution.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use super::{programs, target_dir};

/// An archive of a root with these packages, made once for all runs. `variant` as mmdebstrap names it.
pub fn base(name: &str, variant: &str, packages: &[String]) -> Result<PathBuf, String> {
    let dir = target_dir().join(name);
    fs::create_dir_all(&dir).expect("target/ can be written");
    let lock = File::create(dir.join("lock")).expect("target/ can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be waited for");
    let base = dir.join("base.tar");
    if base.is_file() {
        return Ok(base);
    }
    programs::found("mmdebstrap")?;
    let release = fs::read_to_string("/etc/os-release").map_err(|error| error.to_string())?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.ok_or("this distribution has no code name")?;
    let unfinished = dir.join("unfinished.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .arg("--quiet")
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={}", packages.join(",")))
        .arg(suite)
        .arg(&unfinished);
    programs::run(&mut command)?;
    fs::rename(&unfinished, &base).expect("the same folder");
    Ok(base)
}

/// The packages that own the shared libraries of these programs. The names differ between distributions.
pub fn libraries(programs: &[PathBuf]) -> Result<Vec<String>, String> {
    const SCRIPT: &str = r#"
        ldd "$@" | awk '$2 == "=>" && $3 ~ "^/" { print $3 }' | sort -u | xargs -r realpath |
            xargs -r dpkg-query --search 2>/dev/null | sed 's/:.*//' | sort -u
    "#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).args(programs);
    let output = command.output().map_err(|error| format!("sh: {error}"))?;
    let names = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = names.lines().map(str::to_owned).collect();
    if names.is_empty() {
        return Err("dpkg-query knows no package of the programs' libraries".to_owned());
    }
    Ok(names)
}
