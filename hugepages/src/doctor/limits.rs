//! Limits of cgroups, containers and processes.

use super::Finding;
use super::host::Host;
use crate::kernel::processes::limits::{self, Limits};
use crate::kernel::{Limit, PoolState, cgroup_limits};
use crate::size::ByteSize;

pub fn cgroup(host: &Host) -> Vec<Finding> {
    // A limit may close one page size and leave another open, so the sum over all sizes decides.
    let left_of = |pool: &PoolState| {
        let limits = host.status.limits.iter();
        let of_size = limits.filter(|limit| limit.page_size == pool.page_size);
        let left = of_size.map(Limit::left_bytes).min().unwrap_or(u64::MAX);
        left.min(pool.usable * pool.page_size.bytes())
    };
    let together: u64 = host.status.pools.iter().map(left_of).sum();
    let tightest = host.status.limits.iter().filter(|limit| limit.tightest);
    let findings: Vec<Finding> = tightest
        .map(|limit| {
            let left = ByteSize::new(limit.left_bytes());
            let found = format!("{} of cgroup {} allows another {left} of huge pages of {}", limit.file, limit.cgroup, limit.page_size);
            let binds = limit.left_bytes() < host.need.unwrap_or(limit.page_size.bytes());
            let short = binds && together < host.need.unwrap_or(1);
            if short {
                Finding::problem(found, "the kernel refuses pages above this limit, even if the pool has free pages; Kubernetes sets 0 for pods without `hugepages-2Mi` in resources.limits")
            } else {
                Finding::note(found, "the kernel refuses pages above this limit, even if the pool has free pages")
            }
        })
        .collect();
    if findings.is_empty() {
        vec![Finding::ok("no cgroup limits huge pages")]
    } else {
        findings
    }
}

/// Memory cgroups count huge pages only with the mount option `memory_hugetlb_accounting`.
pub fn memory(host: &Host) -> Vec<Finding> {
    let Some((limit, cgroup)) = cgroup_limits::memory_limit(&host.root) else {
        return Vec::new();
    };
    let counted = cgroup_limits::memory_counts_huge_pages(&host.root);
    let found = format!(
        "cgroup {} is limited to {} of memory",
        if cgroup.is_empty() { "/" } else { &cgroup },
        ByteSize::new(limit)
    );
    vec![if !counted {
        Finding::note(
            found,
            "this limit does not count huge pages: it applies to a model in the page cache, not to a model on huge pages",
        )
    } else if host.need.is_some_and(|need| need > limit) {
        Finding::problem(
            found,
            "this limit counts huge pages (memory_hugetlb_accounting), and the model is larger",
        )
    } else {
        Finding::note(
            found,
            "this limit counts huge pages (memory_hugetlb_accounting)",
        )
    }]
}

pub fn rlimits(host: &Host) -> Vec<Finding> {
    let limits = Limits::read(&host.root);
    let mut findings = Vec::new();
    if let Some(bytes) = limits.soft("Max address space") {
        let found = format!("RLIMIT_AS is {}", ByteSize::new(bytes));
        let meaning = "a load needs twice the size of the model in address space";
        let short = host.need.is_some_and(|need| need.saturating_mul(2) > bytes);
        let finding = if short {
            Finding::problem(found, meaning)
        } else {
            Finding::warning(found, meaning)
        };
        findings.push(finding.command("ulimit -v unlimited"));
    }
    if let Some(bytes) = limits.soft("Max locked memory") {
        findings.push(Finding::note(
            format!("RLIMIT_MEMLOCK is {}", ByteSize::new(bytes)),
            "it stops --mlock; huge pages stay in memory without --mlock",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("no limit on address space or locked memory"));
    }
    findings
}

pub fn max_map_count(host: &Host) -> Vec<Finding> {
    let Some(count) = limits::max_map_count(&host.root) else {
        return Vec::new();
    };
    let found = format!("vm.max_map_count is {count}");
    vec![if count < 65530 {
        Finding::warning(
            found,
            "below the kernel's default of 65530: a model in many pieces can need more mappings",
        )
        .command("sudo sysctl vm.max_map_count=65530")
    } else {
        Finding::ok(found)
    }]
}
