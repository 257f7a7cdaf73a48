//! The need of a model against the pools: the missing pages, and the commands that add them.

use serde::Serialize;

use super::{Need, Plan};
use crate::kernel::hvo::{self, HvoState};
use crate::kernel::pools::{self, NodePool, PoolState};
use crate::kernel::{HugePageSize, Root, sizes};
use crate::pool::persist::Persistent;

/// The need of one pool, and its counters, in pages.
#[derive(Debug, Serialize)]
pub struct PoolDemand {
    /// In bytes.
    pub page_size: u64,
    /// Pages that the model needs.
    pub needed: u64,
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
    /// Needed pages that are not usable.
    pub missing: u64,
    /// Bytes of the needed pages that hold no tensor.
    pub waste_bytes: u64,
    /// One for each node; empty on a machine with one node.
    pub nodes: Vec<NodeDemand>,
    /// Bytes of `struct page` memory that HVO frees for these pages.
    pub hvo_bytes: u64,
}

/// The counters of one node, and its need: pages of the rows that its threads read, and its share of memory that is on all nodes in turn.
#[derive(Debug, Serialize)]
pub struct NodeDemand {
    /// Number of the node.
    pub node: u32,
    /// Pages that the model needs of this node.
    pub needed: Option<u64>,
    /// All pages, surplus included.
    pub total: u64,
    /// Not in use.
    pub free: u64,
}

/// The plan, and the state of each pool that it needs. Its fields are those of the JSON of `hugepages plan`.
#[derive(Debug, Serialize)]
pub struct Demand<'a> {
    /// The need.
    #[serde(flatten)]
    pub plan: &'a Plan,
    /// One for each page size that the model needs.
    pub pools: Vec<PoolDemand>,
    /// Commands that add the missing pages. They set new totals, which include the pages of others.
    pub commands: Vec<String>,
    /// Settings for every boot: a file and its line.
    pub persistent: Vec<(String, String)>,
    /// Whether HVO is on; `None` if the kernel has no HVO.
    pub hvo: Option<bool>,
    /// Bytes of page tables of each process with these pages.
    pub page_table_bytes: u64,
    /// The same with pages of 4 KiB.
    pub page_table_bytes_4k: u64,
}

impl<'a> Demand<'a> {
    /// Compares a plan with the pools. `interleaved`: memory that is not placed by rows is on all nodes in turn.
    pub fn new(root: &Root, plan: &'a Plan, interleaved: bool) -> Self {
        let default_size = sizes::default_of(root);
        let states = pools::read(root);
        let mut pools = Vec::new();
        let mut commands = Vec::new();
        let mut persistent = Vec::new();
        for (size, needed) in plan.pages() {
            let Some(pool) = states.iter().find(|pool| pool.page_size == size) else {
                continue;
            };
            // A plan that fits may count on the pages of idle images (`--hugepage-evict`).
            let missing = if plan.fits {
                0
            } else {
                needed.saturating_sub(pool.usable)
            };
            let by_rows = plan.node_pages(size);
            if missing == 0 {
                commands.extend(node_commands(pool, &by_rows));
            } else {
                let total = pool.total + missing;
                commands.push(if default_size == Some(size) {
                    format!("sysctl vm.nr_hugepages={total}")
                } else {
                    let folder = pools::folder(size, None);
                    format!("echo {total} > {folder}/nr_hugepages")
                });
                // The same lines that `hugepages pool persist` writes.
                let files = Persistent::new(root, size, None, total)
                    .settings
                    .into_iter();
                persistent.extend(files.map(|file| {
                    let setting = file.text.lines().last().unwrap_or_default().to_owned();
                    (file.path.display().to_string(), setting)
                }));
            }
            pools.push(PoolDemand {
                page_size: size.bytes(),
                needed,
                total: pool.total,
                free: pool.free,
                reserved: pool.reserved,
                surplus: pool.surplus,
                overcommit: pool.overcommit,
                usable: pool.usable,
                missing,
                waste_bytes: waste(plan, size, needed),
                nodes: nodes_of(pool, needed, &by_rows, interleaved),
                hvo_bytes: needed * hvo::saved_bytes(size),
            });
        }
        let sum = |f: fn(&Need) -> u64| plan.needs.iter().map(f).sum::<u64>();
        Self {
            plan,
            pools,
            commands,
            persistent,
            hvo: match hvo::state(root) {
                HvoState::On => Some(true),
                HvoState::Off => Some(false),
                HvoState::Unsupported => None,
            },
            page_table_bytes: 8 * sum(|need| need.pages),
            page_table_bytes_4k: 8 * sum(|need| need.bytes.div_ceil(4096)),
        }
    }
}

fn waste(plan: &Plan, size: HugePageSize, needed: u64) -> u64 {
    let of_size = plan
        .needs
        .iter()
        .filter(|need| need.page_size == size.bytes());
    let bytes: u64 = of_size.map(|need| need.bytes).sum();
    (needed * size.bytes()).saturating_sub(bytes)
}

/// `by_rows`: pages that are placed by rows, for each node
fn nodes_of(pool: &PoolState, needed: u64, by_rows: &[u64], interleaved: bool) -> Vec<NodeDemand> {
    let n = pool.nodes.len() as u64;
    let in_turn = needed.saturating_sub(by_rows.iter().sum());
    let nodes = pool.nodes.iter().filter(|_| n > 1);
    nodes
        .map(|node| NodeDemand {
            node: node.node,
            needed: interleaved.then(|| in_turn.div_ceil(n) + pages_on(by_rows, node.node)),
            total: node.total,
            free: node.free,
        })
        .collect()
}

fn pages_on(by_rows: &[u64], node: u32) -> u64 {
    by_rows.get(node as usize).copied().unwrap_or_default()
}

/// Commands for nodes that lack pages of their rows, although the pool has enough pages.
fn node_commands(pool: &PoolState, by_rows: &[u64]) -> Vec<String> {
    let short = |node: &NodePool| pages_on(by_rows, node.node).saturating_sub(node.free);
    let lacking: u64 = pool.nodes.iter().map(short).sum();
    // The kernel can allocate surplus pages on any node.
    if lacking <= pool.overcommit.saturating_sub(pool.surplus) {
        return Vec::new();
    }
    let nodes = pool.nodes.iter().filter(|node| short(node) > 0);
    nodes
        .map(|node| {
            let folder = pools::folder(pool.page_size, Some(node.node));
            format!("echo {} > {folder}/nr_hugepages", node.total + short(node))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A kernel with two nodes. One node has nearly all pages.
    fn two_nodes(dir: &std::path::Path) -> Root {
        let write = |folder: &str, values: &[(&str, u64)]| {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).unwrap();
            for (name, value) in values {
                fs::write(folder.join(name), format!("{value}\n")).unwrap();
            }
        };
        write(
            "sys/kernel/mm/hugepages/hugepages-2048kB",
            &[
                ("nr_hugepages", 100),
                ("free_hugepages", 90),
                ("resv_hugepages", 0),
                ("surplus_hugepages", 0),
                ("nr_overcommit_hugepages", 0),
            ],
        );
        for (node, total, free) in [(0, 80, 75), (1, 20, 15)] {
            let folder = format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
            write(
                &folder,
                &[
                    ("nr_hugepages", total),
                    ("free_hugepages", free),
                    ("surplus_hugepages", 0),
                ],
            );
        }
        fs::create_dir_all(dir.join("proc")).unwrap();
        fs::write(dir.join("proc/meminfo"), "Hugepagesize:       2048 kB\n").unwrap();
        Root::at(dir).unwrap()
    }

    fn plan(pages: u64, fits: bool) -> Plan {
        let need = format!(
            r#"{{"model":"m.gguf","kind":"weights","file":0,"page_size":2097152,"pages":{pages},"bytes":{}}}"#,
            pages << 21
        );
        let text = format!(
            r#"{{"model":"m.gguf","size":"2M","fits":{fits},"message":"","hint":"","needs":[{need}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_missing_is_added_to_what_others_have() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let plan = plan(120, false);
        let demand = Demand::new(&root, &plan, false);
        assert_eq!(demand.pools[0].missing, 30);
        assert_eq!(demand.commands, ["sysctl vm.nr_hugepages=130"]);
        assert_eq!(demand.hvo, None);
        assert_eq!(demand.pools[0].nodes.len(), 2);
        assert_eq!(demand.pools[0].nodes[1].needed, None);
    }

    #[test]
    fn the_waste_is_what_the_pages_have_beyond_the_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let need = |kind: &str, pages: u64, bytes: u64| {
            format!(
                r#"{{"model":"m.gguf","kind":"{kind}","file":null,"page_size":2097152,"pages":{pages},"bytes":{bytes}}}"#
            )
        };
        // The second kind lies on the last page of the first.
        let needs = [need("kv", 3, 5 << 20), need("compute", 0, 1000)].join(",");
        let text = format!(
            r#"{{"model":"m.gguf","size":"auto","fits":true,"message":"","hint":"","needs":[{needs}]}}"#
        );
        let plan: Plan = serde_json::from_str(&text).unwrap();
        let demand = Demand::new(&root, &plan, false);
        assert_eq!(demand.pools[0].needed, 3);
        assert_eq!(demand.pools[0].waste_bytes, (1 << 20) - 1000);
    }

    #[test]
    fn a_node_needs_the_pages_of_its_rows_and_its_share_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let weights = r#"{"kind":"weights","file":0,"page_size":2097152,"pages":41,"bytes":85000000,"node_pages":[21,20,0],"local_bytes":84000000,"remote_bytes":1000000}"#;
        let kv = r#"{"kind":"kv","file":null,"page_size":2097152,"pages":9,"bytes":18874368}"#;
        let text = format!(
            r#"{{"model":"m.gguf","size":"2M","fits":false,"message":"","hint":"","needs":[{weights},{kv}]}}"#
        );
        let plan: Plan = serde_json::from_str(&text).unwrap();
        let demand = Demand::new(&root, &plan, true);
        let needed: Vec<_> = demand.pools[0]
            .nodes
            .iter()
            .map(|node| node.needed)
            .collect();
        assert_eq!(needed, [Some(26), Some(25)]);
        // 90 pages are usable, but node 1 has only 15 free pages for 20 pages of rows.
        assert_eq!(demand.pools[0].missing, 0);
        assert_eq!(
            demand.commands,
            ["echo 25 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"]
        );
        assert_eq!(plan.local_bytes(), Some((84_000_000, 85_000_000)));
    }

    #[test]
    fn pages_from_all_nodes_in_turn_are_needed_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let root = two_nodes(dir.path());
        let plan = plan(51, false);
        let demand = Demand::new(&root, &plan, true);
        let needed: Vec<_> = demand.pools[0]
            .nodes
            .iter()
            .map(|node| (node.node, node.needed, node.free))
            .collect();
        assert_eq!(needed, [(0, Some(26), 75), (1, Some(26), 15)]);
    }
}
