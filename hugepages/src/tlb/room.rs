//! How much ordinary memory this process can take without an out-of-memory kill.

use std::fs;

use crate::kernel::Root;
use crate::kernel::files;
use crate::size::ByteSize;

/// Margin for all other processes.
const MARGIN: u64 = 256 << 20;

/// Usable bytes: the minimum of `MemAvailable` and of the room in all cgroups above, less a margin. `None` if the kernel does
/// not report it.
pub fn room(root: &Root) -> Option<ByteSize> {
    let meminfo = files::text(root, "/proc/meminfo")?;
    let available = files::kib_field(&meminfo, "MemAvailable")?;
    let bytes = cgroups(root).fold(available, u64::min);
    Some(ByteSize::new(bytes.saturating_sub(MARGIN)))
}

/// The room in each cgroup of version 2 with a limit, from our cgroup upward.
fn cgroups(root: &Root) -> impl Iterator<Item = u64> {
    let own = fs::read_to_string(root.path("/proc/self/cgroup")).unwrap_or_default();
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/")
        .to_owned();
    let top = root.path("/sys/fs/cgroup");
    let folder = top.join(path.trim_start_matches('/'));
    let folders: Vec<_> = folder
        .ancestors()
        .take_while(|folder| folder.starts_with(&top))
        .map(ToOwned::to_owned)
        .collect();
    folders.into_iter().filter_map(|folder| {
        // "max" is no number and no limit.
        let number = |name| {
            let text = fs::read_to_string(folder.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let limit: u64 = number("memory.max")?;
        Some(limit.saturating_sub(number("memory.current").unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(room(&root), None);

        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let left = || room(&root).unwrap().bytes() >> 20;
        write(
            "proc/meminfo",
            "MemFree: 1 kB\nMemAvailable:    4194304 kB\n",
        );
        assert_eq!(left(), 4096 - 256);

        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("sys/fs/cgroup/a/b/memory.current", "1000\n");
        assert_eq!(left(), 4096 - 256);

        write("sys/fs/cgroup/a/memory.max", "2147483648\n");
        write("sys/fs/cgroup/a/memory.current", "1073741824\n");
        assert_eq!(left(), 1024 - 256);

        write("sys/fs/cgroup/memory.max", "1048576\n");
        assert_eq!(left(), 0);
    }
}
