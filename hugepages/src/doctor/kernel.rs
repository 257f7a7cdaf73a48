//! Support for huge pages in the kernel and the CPU.

use crate::kernel::files;
use std::io::Read;
use std::process::{Command, Stdio};

use super::Finding;
use super::host::Host;

/// 5.14 has `MADV_POPULATE_WRITE`, the only call that reports a shortage as an error instead of a later signal.
const OLDEST: (u32, u32) = (5, 14);

pub fn version(host: &Host) -> Vec<Finding> {
    let Some(release) = files::text(&host.root, "/proc/sys/kernel/osrelease") else {
        return Vec::new();
    };
    let release = release.trim();
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
    let known = files::text(&host.root, "/proc/filesystems").unwrap_or_default();
    let has_it = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("hugetlbfs"));
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
    let Some(config) = build_config(host) else {
        return Vec::new();
    };
    let has = |name: &str| {
        config
            .lines()
            .any(|line| line == format!("CONFIG_{name}=y"))
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
    let missing = useful.iter().filter(|(name, _)| !has(name));
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

/// The text of `/boot/config-RELEASE`, or of `/proc/config.gz`.
fn build_config(host: &Host) -> Option<String> {
    let release = files::text(&host.root, "/proc/sys/kernel/osrelease")?;
    if let Some(text) = files::text(&host.root, &format!("/boot/config-{}", release.trim())) {
        return Some(text);
    }
    let path = host.root.path("/proc/config.gz");
    if !path.is_file() {
        return None;
    }
    // The program gzip, because every system has it and only this function unpacks.
    let gzip = Command::new("gzip")
        .arg("-dc")
        .arg(path)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let mut text = String::new();
    gzip.stdout.as_slice().read_to_string(&mut text).ok()?;
    gzip.status.success().then_some(text)
}

pub fn cpu(host: &Host) -> Vec<Finding> {
    let info = files::text(&host.root, "/proc/cpuinfo").unwrap_or_default();
    let Some(flags) = info.lines().find_map(|line| line.strip_prefix("flags")) else {
        // arm64 and other CPUs have no such flags; the check `hugetlbfs` covers them.
        return Vec::new();
    };
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    vec![match (has("pse"), has("pdpe1gb")) {
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
