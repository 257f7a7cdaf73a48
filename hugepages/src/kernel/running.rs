//! The running kernel: its release, its boot, its build options and its file systems.

use std::io::Read;
use std::process::{Command, Stdio};

use super::{Root, files};

/// The release, such as `6.12.1-generic`.
pub fn release(root: &Root) -> Option<String> {
    let release = files::text(root, "/proc/sys/kernel/osrelease")?;
    Some(release.trim().to_owned())
}

/// A random number of the last boot.
pub fn boot_id(root: &Root) -> Option<String> {
    let id = files::text(root, "/proc/sys/kernel/random/boot_id")?;
    Some(id.trim().to_owned())
}

/// Whether the kernel knows a type of file system.
pub fn has_file_system(root: &Root, kind: &str) -> bool {
    let known = files::text(root, "/proc/filesystems").unwrap_or_default();
    let mut lines = known.lines();
    lines.any(|line| line.split_whitespace().last() == Some(kind))
}

/// The options of the kernel's build.
#[derive(Debug, Clone)]
pub struct BuildOptions(String);

impl BuildOptions {
    /// Reads `/boot/config-RELEASE`, or `/proc/config.gz`. `None` if neither exists.
    pub fn read(root: &Root) -> Option<Self> {
        let release = release(root)?;
        if let Some(text) = files::text(root, &format!("/boot/config-{release}")) {
            return Some(Self(text));
        }
        let path = root.path("/proc/config.gz");
        if !path.is_file() {
            return None;
        }
        // The program gzip, because every system has it and only this function unpacks.
        let gzip = Command::new("gzip")
            .arg("-dc")
            .arg(path)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let mut text = String::new();
        gzip.stdout.as_slice().read_to_string(&mut text).ok()?;
        gzip.status.success().then_some(Self(text))
    }

    /// Whether an option is built in. `name` is without `CONFIG_`.
    pub fn has(&self, name: &str) -> bool {
        let wanted = format!("CONFIG_{name}=y");
        self.0.lines().any(|line| line == wanted)
    }
}
