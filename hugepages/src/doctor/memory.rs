//! Settings and state of ordinary memory.

use super::Finding;
use super::host::Host;
use crate::kernel::nodes;
use crate::size::ByteSize;

pub fn thp(host: &Host) -> Vec<Finding> {
    let Some(enabled) = host.status.thp.enabled.as_deref() else {
        return Vec::new();
    };
    let found = format!("THP is {enabled}");
    vec![match enabled {
        "always" => Finding::note(
            found,
            "the kernel thread khugepaged uses CPU time, and a comparison measures the memory of stock on THP",
        )
        .command("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"),
        "never" => Finding::note(
            found,
            "`--hugepage-size thp` has no effect; pages of a pool do not need THP",
        )
        .command("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"),
        _ => Finding::ok(found),
    }]
}

pub fn numa_balancing(host: &Host) -> Vec<Finding> {
    let nodes = nodes::all(&host.root).len();
    match nodes::balancing(&host.root) {
        Some(1..) if nodes > 1 => vec![
            Finding::warning(
                format!("NUMA balancing is on, with {nodes} nodes"),
                "the kernel unmaps memory to find its readers, which causes page faults during inference",
            )
            .command("sudo sysctl kernel.numa_balancing=0"),
        ],
        Some(_) => vec![Finding::ok("NUMA balancing has no effect")],
        None => Vec::new(),
    }
}

pub fn swap(host: &Host) -> Vec<Finding> {
    match host.status.memory.swap_used_bytes {
        Some(used) if used > 0 => vec![
            Finding::warning(
                format!("{} are swapped out", ByteSize::new(used)),
                "memory is or was short; a larger pool leaves less for other programs",
            )
            .command("hugepages status --watch"),
        ],
        _ => vec![Finding::ok("nothing is swapped out")],
    }
}

pub fn pressure(host: &Host) -> Vec<Finding> {
    let Some(stalls) = host.status.memory.stalls else {
        return Vec::new();
    };
    vec![if stalls.some.avg60 >= 1.0 {
        Finding::warning(
            format!(
                "tasks waited for memory {:.1} % of the last minute",
                stalls.some.avg60
            ),
            "memory is short now; a larger pool leaves less for other programs",
        )
        .command("hugepages status --watch")
    } else {
        Finding::ok("no task waits for memory")
    }]
}
