//! CPU frequency, and virtual machines.

use super::Finding;
use super::host::Host;
use crate::kernel::machine::{self, Cpu};

pub fn governor(host: &Host) -> Vec<Finding> {
    let Some(governor) = machine::governor(&host.root) else {
        return Vec::new();
    };
    let found = format!("the CPU governor is {governor}");
    vec![if governor == "powersave" {
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
    let has_flag = Cpu::read(&host.root).is_virtual();
    let vendor = machine::vendor(&host.root).unwrap_or_default();
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
