//! How much ordinary memory this process can take without an out-of-memory kill.

use crate::kernel::{Root, cgroup_limits, meminfo};
use crate::size::ByteSize;

/// Margin for all other processes.
const MARGIN: u64 = 256 << 20;

/// Usable bytes: the minimum of `MemAvailable` and of the room in all cgroups above, less a margin. `None` if the kernel does
/// not report it.
pub fn room(root: &Root) -> Option<ByteSize> {
    let available = meminfo::read(root).ok()?.bytes("MemAvailable")?;
    let left = cgroup_limits::memory_left(root).into_iter();
    let bytes = left.fold(available, u64::min);
    Some(ByteSize::new(bytes.saturating_sub(MARGIN)))
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        write(
            "proc/self/mountinfo",
            "31 1 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
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
