//! The NUMA nodes.

use std::fs;

use super::{Root, files};

/// Numbers of the nodes, in ascending order. Empty on a kernel without NUMA.
pub fn all(root: &Root) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(root.path("/sys/devices/system/node")) else {
        return Vec::new();
    };
    let mut nodes: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("node")?
                .parse()
                .ok()
        })
        .collect();
    nodes.sort_unstable();
    nodes
}

/// The nodes with CPUs: a node without them, for example of CXL memory, runs no thread.
pub fn with_cpus(root: &Root) -> Vec<u32> {
    let has_cpus = |node: &u32| {
        let file = format!("/sys/devices/system/node/node{node}/cpulist");
        files::text(root, &file).is_some_and(|cpus| !cpus.trim().is_empty())
    };
    all(root).into_iter().filter(has_cpus).collect()
}

/// The memory policy of this process, such as `default` or `interleave:0-1`: that of its first mapping, because this program sets no
/// policy for a mapping.
pub fn memory_policy(root: &Root) -> Option<String> {
    let maps = files::text(root, "/proc/self/numa_maps")?;
    let policy = maps.lines().next()?.split_whitespace().nth(1)?;
    Some(policy.to_owned())
}

/// `kernel.numa_balancing`: 0 is off.
pub fn balancing(root: &Root) -> Option<u32> {
    files::number(root, "/proc/sys/kernel/numa_balancing")
}
