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

/// `kernel.numa_balancing`: 0 is off.
pub fn balancing(root: &Root) -> Option<u32> {
    files::number(root, "/proc/sys/kernel/numa_balancing")
}
