//! Several NUMA nodes: whether the server would read its weights from its own node.

use super::Finding;
use super::host::Host;
use crate::kernel::nodes;

/// Nodes with CPUs, because threads run only on these.
pub fn placement(host: &Host) -> Vec<Finding> {
    let count = nodes::with_cpus(&host.root).len();
    if count < 2 {
        return Vec::new();
    }
    vec![if let Some(numa) = &host.numa {
        Finding::ok(format!("--numa {numa}, on {count} nodes with CPUs"))
    } else {
        let found = format!("{count} nodes with CPUs, and no --numa");
        let meaning = "threads read most weights from other nodes; `--numa distribute` puts each row on the node of the thread that reads it";
        if host.arguments.is_empty() {
            Finding::note(found, meaning)
        } else {
            Finding::warning(found, meaning).command(by_rows(host))
        }
    }]
}

fn by_rows(host: &Host) -> String {
    format!("llama-server {} --numa distribute", host.arguments)
}

/// Under numactl, this program has the memory policy that a server would have.
pub fn policy(host: &Host) -> Vec<Finding> {
    let Some(policy) = nodes::memory_policy(&host.root).filter(|it| it.contains("interleave"))
    else {
        return Vec::new();
    };
    let found = format!("the memory policy of this process is {policy}");
    vec![match host.numa.as_deref() {
        Some("distribute") => Finding::warning(
            found,
            "start the server without `numactl --interleave`: where a filter forbids set_mempolicy, the policy undoes the placement",
        ),
        // The engine binds pages to the nodes of its CPUs.
        Some("isolate" | "numactl") => Finding::ok(found),
        _ => {
            let finding = Finding::warning(
                found,
                "each page is on the next node, so threads read most weights from other nodes; start the server without `numactl --interleave`",
            );
            if host.arguments.is_empty() {
                finding
            } else {
                finding.command(by_rows(host))
            }
        }
    }]
}
