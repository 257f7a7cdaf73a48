//! CPU frequency, and virtual machines.

use super::Finding;
use super::host::Host;
use crate::kernel::files;

pub fn governor(host: &Host) -> Vec<Finding> {
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    let Some(governor) = files::text(&host.root, path) else {
        return Vec::new();
    };
    let found = format!("the CPU governor is {}", governor.trim());
    vec![if governor.trim() == "powersave" {
        Finding::note(
            found,
            "tokens/s can differ from run to run; use `performance` for measurements",
        )
        .command(
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    } else {
        Finding::ok(found)
    }]
}

pub fn virtual_machine(host: &Host) -> Vec<Finding> {
    let info = files::text(&host.root, "/proc/cpuinfo").unwrap_or_default();
    let mut flags = info.lines().filter(|line| line.starts_with("flags"));
    let has_flag = flags
        .next()
        .is_some_and(|line| line.split(' ').any(|flag| flag == "hypervisor"));
    let vendor = files::text(&host.root, "/sys/class/dmi/id/sys_vendor").unwrap_or_default();
    let known = [
        "QEMU",
        "VMware",
        "Xen",
        "innotek",
        "Amazon EC2",
        "Google",
        "Microsoft Corporation",
    ];
    let by_name = known.iter().find(|name| vendor.contains(**name));
    if !has_flag && by_name.is_none() {
        return Vec::new();
    }
    let found = by_name.map_or("a virtual machine".to_owned(), |name| {
        format!("a virtual machine ({name})")
    });
    vec![Finding::note(
        found,
        "huge pages reduce TLB misses only if the host backs this memory with huge pages too; the guest cannot check this",
    )]
}
