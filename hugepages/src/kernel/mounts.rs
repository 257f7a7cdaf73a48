//! `/proc/self/mountinfo`: the mounts that this process sees.
//!
//! Parsed here and not by a crate, because the known ones keep `\040` in paths, and one line that they cannot read loses all lines.

use super::{Root, files};

/// One mount. Source: `proc_pid_mountinfo(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mount {
    /// `major:minor` of the file system.
    pub device: String,
    /// The directory of the file system that is mounted: `/`, or a part of it in a container.
    pub top: String,
    /// Mount point.
    pub path: String,
    /// Type of the file system: `hugetlbfs`, `cgroup2`.
    pub kind: String,
    /// Options of the file system, in the kernel's form.
    pub options: String,
}

impl Mount {
    /// The value of an option: `2M` for `pagesize`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .split(',')
            .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether the options contain this word.
    pub fn has(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }

    /// Read-ahead of the device under the file system, in KiB.
    pub fn read_ahead_kb(&self, root: &Root) -> Option<String> {
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        Some(files::text(root, &path)?.trim().to_owned())
    }

    /// `ID parent major:minor top path options … - kind source options`
    fn parse(line: &str) -> Option<Self> {
        let (ours, theirs) = line.split_once(" - ")?;
        let ours: Vec<&str> = ours.split(' ').collect();
        let theirs: Vec<&str> = theirs.split(' ').collect();
        let ([_, _, device, top, path, ..], [kind, _, options]) = (&ours[..], &theirs[..]) else {
            return None;
        };
        Some(Self {
            device: (*device).to_owned(),
            top: unescape(top),
            path: unescape(path),
            kind: (*kind).to_owned(),
            options: (*options).to_owned(),
        })
    }
}

/// All mounts, in the order of the kernel: a later mount hides an earlier one at the same path.
pub fn all(root: &Root) -> Vec<Mount> {
    let table = files::text(root, "/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(Mount::parse).collect()
}

/// The kernel writes space, tab, newline and backslash as octal codes.
fn unescape(text: &str) -> String {
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replace = |text: String, (code, letter): (&str, &str)| text.replace(code, letter);
    codes.into_iter().fold(text.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_path_and_options() {
        let line =
            "40 29 0:35 / /a\\040b rw,nosuid shared:1 - hugetlbfs none rw,seclabel,pagesize=2M";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((&*mount.path, &*mount.device), ("/a b", "0:35"));
        assert_eq!((&*mount.top, &*mount.kind), ("/", "hugetlbfs"));
        assert_eq!(mount.option("pagesize"), Some("2M"));
        assert_eq!(mount.option("size"), None);
        assert!(mount.has("seclabel") && !mount.has("pagesize"));
    }

    #[test]
    fn an_odd_line_is_no_mount_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        let table = "odd\n1 2 0:3 / /x rw - tmpfs none rw\n1 2 - x\n";
        std::fs::write(dir.path().join("proc/self/mountinfo"), table).unwrap();
        let mounts = all(&Root::at(dir.path()).unwrap());
        assert_eq!(mounts.len(), 1);
    }
}
