//! Support for huge pages in the kernel and the CPU.

use super::Finding;
use super::host::Host;
use crate::kernel::machine::Cpu;
use crate::kernel::running::{self, BuildOptions};

/// 5.14 has `MADV_POPULATE_WRITE`, the only call that reports a shortage as an error instead of a later signal.
const OLDEST: (u32, u32) = (5, 14);

pub fn version(host: &Host) -> Vec<Finding> {
    let Some(release) = running::release(&host.root) else {
        return Vec::new();
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    vec![if version >= OLDEST {
        Finding::ok(found)
    } else {
        Finding::problem(
            found,
            "Linux 5.14 or newer is required: older kernels report a shortage of huge pages only by a signal",
        )
    }]
}

pub fn hugetlbfs(host: &Host) -> Vec<Finding> {
    let has_it = running::has_file_system(&host.root, "hugetlbfs");
    if !has_it || host.status.pools.is_empty() {
        return vec![Finding::problem(
            "the kernel has no HugeTLB",
            "huge pages require a kernel with CONFIG_HUGETLBFS, and in a container a visible /sys",
        )];
    }
    let sizes: Vec<String> = host
        .status
        .pools
        .iter()
        .map(|pool| pool.page_size.to_string())
        .collect();
    vec![Finding::ok(format!(
        "HugeTLB with pages of {}",
        sizes.join(", ")
    ))]
}

pub fn config(host: &Host) -> Vec<Finding> {
    let Some(built) = BuildOptions::read(&host.root) else {
        return Vec::new();
    };
    let useful = [
        (
            "HUGETLB_PAGE_OPTIMIZE_VMEMMAP",
            "without HVO the pool keeps its `struct page` memory",
        ),
        ("CGROUP_HUGETLB", "cgroups cannot limit huge pages"),
        (
            "TRANSPARENT_HUGEPAGE",
            "`--hugepage-size thp` has no effect",
        ),
        (
            "COMPACTION",
            "a pool rarely grows after the machine has run for a while",
        ),
    ];
    let missing = useful.iter().filter(|(name, _)| !built.has(name));
    let findings: Vec<Finding> = missing
        .map(|(name, means)| Finding::note(format!("built without CONFIG_{name}"), *means))
        .collect();
    if findings.is_empty() {
        vec![Finding::ok(
            "built with HVO, hugetlb cgroups, THP and compaction",
        )]
    } else {
        findings
    }
}

pub fn cpu(host: &Host) -> Vec<Finding> {
    let cpu = Cpu::read(&host.root);
    let (Some(has_pse), Some(has_pdpe1gb)) = (cpu.has("pse"), cpu.has("pdpe1gb")) else {
        // arm64 and other CPUs have no such flags; the check `hugetlbfs` covers them.
        return Vec::new();
    };
    vec![match (has_pse, has_pdpe1gb) {
        (false, _) => {
            Finding::problem("the CPU lacks the flag pse", "it cannot map pages of 2 MiB")
        }
        (true, false) => Finding::note(
            "the CPU lacks the flag pdpe1gb",
            "only pages of 2 MiB work; a virtual machine gets this flag from its host",
        ),
        (true, true) => Finding::ok("the CPU maps pages of 2 MiB and 1 GiB"),
    }]
}
