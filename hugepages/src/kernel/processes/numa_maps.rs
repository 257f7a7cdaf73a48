//! `/proc/PID/numa_maps`: the pages of each mapping on each NUMA node.

use std::fmt::Display;

use crate::kernel::{Root, files};

/// The pages of one mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappingNodes {
    /// First address.
    pub start: u64,
    /// Size of its pages. `None` for a mapping without pages.
    pub page_bytes: Option<u64>,
    /// Numbers of the nodes, and pages on each.
    pub nodes: Vec<(u32, u64)>,
}

impl MappingNodes {
    /// `7f00 default anon=3 N0=2 N1=1 kernelpagesize_kB=4`
    fn parse(line: &str) -> Option<Self> {
        let (start, fields) = line.split_once(' ')?;
        let fields = fields.split(' ').filter_map(|field| field.split_once('='));
        let fields = fields.filter_map(|(key, value)| Some((key, value.parse::<u64>().ok()?)));
        let mut mapping = Self {
            start: u64::from_str_radix(start, 16).ok()?,
            page_bytes: None,
            nodes: Vec::new(),
        };
        for (key, value) in fields {
            if key == "kernelpagesize_kB" {
                mapping.page_bytes = Some(value * 1024);
            } else if let Some(node) = key.strip_prefix('N').and_then(|node| node.parse().ok()) {
                mapping.nodes.push((node, value));
            }
        }
        Some(mapping)
    }
}

/// All mappings of a process, by its id or `self`. Empty on a kernel without NUMA.
pub fn read(root: &Root, pid: impl Display) -> Vec<MappingNodes> {
    parse(&files::text(root, &format!("/proc/{pid}/numa_maps")).unwrap_or_default())
}

/// The mappings in the text of a file.
pub fn parse(numa_maps: &str) -> Vec<MappingNodes> {
    numa_maps.lines().filter_map(MappingNodes::parse).collect()
}
