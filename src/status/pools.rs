//! The pools of all page sizes, as a whole and on each node.

use std::fs;

use serde::Serialize;

use crate::pool::{Counter, HugePageSize, Pool, Root};

/// One pool, counted in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolState {
    /// Page size.
    #[serde(serialize_with = "super::bytes_of_page")]
    pub page_size: HugePageSize,
    /// All pages, surplus included.
    pub total: u64,
    /// Not in use, reserved ones included.
    pub free: u64,
    /// Promised to a mapping and not yet touched.
    pub reserved: u64,
    /// Taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
    /// Limit for surplus pages.
    pub overcommit: u64,
    /// Free pages that are not reserved, plus the pages that overcommit can add.
    pub usable: u64,
    /// Its parts on each node. The kernel counts reservations and overcommit only for the machine.
    pub nodes: Vec<NodePool>,
}

/// The part of a pool on one NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodePool {
    /// Number of the node.
    pub node: u32,
    /// All pages, surplus included.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// Taken from ordinary memory on top of the persistent pool.
    pub surplus: u64,
}

/// All pools, smallest pages first. Empty on a kernel without HugeTLB.
pub fn read(root: &Root) -> Vec<PoolState> {
    let nodes = nodes(root);
    let pools = HugePageSize::all(root)
        .into_iter()
        .filter_map(|size| Pool::read(root, size));
    pools
        .map(|pool| PoolState {
            page_size: pool.size,
            total: pool.total,
            free: pool.free,
            reserved: pool.reserved,
            surplus: pool.surplus,
            overcommit: pool.overcommit,
            usable: pool.usable(),
            nodes: nodes
                .iter()
                .filter_map(|node| on_node(root, *node, pool.size))
                .collect(),
        })
        .collect()
}

/// Numbers of the nodes with a directory in sysfs.
pub fn nodes(root: &Root) -> Vec<u32> {
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

fn on_node(root: &Root, node: u32, size: HugePageSize) -> Option<NodePool> {
    let counts = Counter::new(root, size, Some(node)).ok()?.read().ok()?;
    Some(NodePool {
        node,
        total: counts.total,
        free: counts.free,
        surplus: counts.surplus,
    })
}
