//! A cgroup with a limit on huge pages, its own or its parent's.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::guardian::Guardian;
use super::pool::PAGE;

/// Tests of one process each have a cgroup of their own.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Empties and removes the cgroup, and disables the controllers that were enabled for it.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    while read -r what dir; do case $what in child) child=$dir ;; parent) parent=$dir ;; esac; done
    for i in 1 2 3 4 5 6 7 8 9 10; do
        # the inner ones first, also those of podman
        for dir in "$child"/*/ "$child"; do
            [ -d "$dir" ] || continue
            while read -r pid; do kill -9 "$pid"; done < "$dir/cgroup.procs"
            rmdir "$dir" 2>/dev/null
        done
        [ -d "$child" ] || break
        sleep 0.2
    done
    [ -d "$child" ] && { echo "cannot remove $child" >&2; exit 1; }
    [ -z "$parent" ] || echo -hugetlb > "$parent/cgroup.subtree_control" 2>/dev/null || true
"#;

/// The place of the limit, as seen from a program's cgroup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Here,
    /// One level up. The program's cgroup has the controller, but no limit of its own.
    Above,
    /// One level up. The program's cgroup has no controller, as under systemd.
    AboveWithoutController,
}

pub struct Cgroup {
    /// The cgroup that a program enters.
    pub dir: PathBuf,
    /// The cgroup with the limit.
    limited: PathBuf,
    _guardian: Guardian,
}

impl Cgroup {
    /// A cgroup whose processes can touch at most `pages` huge pages. An error is the reason to skip the test.
    pub fn with_limit(pages: u64) -> Result<Self, String> {
        Self::with("max", pages, Limit::Here)
    }

    /// A cgroup with `hugetlb.2MB.{file}` (`max`, `rsvd.max`) set to `pages`.
    pub fn with(file: &str, pages: u64, limit: Limit) -> Result<Self, String> {
        let name = format!("llama-hugepages-test-{}", process::id());
        Self::named(&name, file, pages, limit)
    }

    /// Like `with`, for a cgroup with this name.
    pub fn named(name: &str, file: &str, pages: u64, limit: Limit) -> Result<Self, String> {
        let root = v2_mount().ok_or("no cgroup v2 hierarchy is mounted")?;
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))
            .map_err(|error| error.to_string())?;
        if !has_word(&controllers, "hugetlb") {
            return Err("the cgroup v2 hierarchy has no hugetlb controller".to_owned());
        }
        let control = root.join("cgroup.subtree_control");
        OpenOptions::new()
            .write(true)
            .open(&control)
            .map_err(|error| format!("no right to make a cgroup: {error}"))?;

        let dir = root.join(name);
        let mut guardian = Guardian::start(REMOVE, None);
        if !has_word(
            &fs::read_to_string(&control).map_err(|error| error.to_string())?,
            "hugetlb",
        ) {
            guardian.tell(&format!("parent {}", root.display()));
            fs::write(&control, "+hugetlb")
                .map_err(|error| format!("cannot enable the hugetlb controller: {error}"))?;
        }
        guardian.tell(&format!("child {}", dir.display()));
        fs::create_dir(&dir).expect("the hierarchy is writable");
        let inner = dir.join("inner");
        if limit != Limit::Here {
            fs::create_dir(&inner).expect("the hierarchy is writable");
        }
        if limit == Limit::Above {
            fs::write(dir.join("cgroup.subtree_control"), "+hugetlb").expect("the folder is ours");
        }
        let cgroup = Self {
            dir: if limit == Limit::Here {
                dir.clone()
            } else {
                inner
            },
            limited: dir,
            _guardian: guardian,
        };
        cgroup.set(file, pages);
        Ok(cgroup)
    }

    /// Changes the limit.
    pub fn set(&self, file: &str, pages: u64) {
        let path = self.limited.join(format!("hugetlb.2MB.{file}"));
        fs::write(path, (pages * PAGE).to_string()).expect("a cgroup of ours has its limits");
    }

    /// The name of the folder with the limit.
    pub fn name(&self) -> &str {
        let name = self.limited.file_name().and_then(|name| name.to_str());
        name.expect("made of letters and a number")
    }

    /// How often the kernel refused pages to the cgroup.
    pub fn refusals(&self) -> u64 {
        let events = fs::read_to_string(self.limited.join("hugetlb.2MB.events"))
            .expect("the cgroup is alive");
        let max = events.lines().find_map(|line| line.strip_prefix("max "));
        max.expect("a counter").trim().parse().expect("a number")
    }
}

/// A cgroup with a limit on memory, in the hierarchy that has this controller.
pub struct MemoryCgroup {
    pub dir: PathBuf,
    _guardian: Guardian,
}

impl MemoryCgroup {
    /// An error is the reason to skip the test.
    pub fn with_limit(bytes: u64) -> Result<Self, String> {
        let (root, file) = memory_hierarchy()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("llama-hugepages-memory-{}-{number}", process::id());
        let dir = root.join(name);
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(&format!("child {}", dir.display()));
        fs::create_dir(&dir).map_err(|error| format!("no right to make a cgroup: {error}"))?;
        fs::write(dir.join(file), bytes.to_string()).expect("a cgroup of ours has its limits");
        Ok(Self {
            dir,
            _guardian: guardian,
        })
    }
}

/// The mounted hierarchy with the memory controller, and its file for a limit.
fn memory_hierarchy() -> Result<(PathBuf, &'static str), String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let v1 = mounts.lines().find(|line| {
        line.split_once(" - cgroup ")
            .is_some_and(|(_, end)| end.split([' ', ',']).any(|word| word == "memory"))
    });
    if let Some(mount) = v1.and_then(|line| line.split(' ').nth(4)) {
        return Ok((mount.into(), "memory.limit_in_bytes"));
    }
    let root = v2_mount().ok_or("no hierarchy of cgroups is mounted")?;
    let enabled = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    if has_word(&enabled, "memory") {
        Ok((root, "memory.max"))
    } else {
        Err("the memory controller of cgroup v2 is not enabled".to_owned())
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.split_whitespace().any(|has| has == word)
}

fn v2_mount() -> Option<PathBuf> {
    // id parent dev root mount-point options - type source options
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(Path::new(line.split(' ').nth(4)?).to_owned())
}
