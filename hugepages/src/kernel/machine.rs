//! The machine: its CPU, its vendor and its load.

use super::{Root, files};

/// `/proc/cpuinfo`, of the first CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cpu {
    /// Name of the model. Absent on arm64.
    pub model: Option<String>,
    /// Absent on arm64 and other CPUs.
    flags: Option<String>,
}

impl Cpu {
    /// Reads the properties.
    pub fn read(root: &Root) -> Self {
        let cpuinfo = files::text(root, "/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            model: value("model name"),
            flags: value("flags"),
        }
    }

    /// Whether the CPU has a flag. `None` if the kernel reports no flags.
    pub fn has(&self, flag: &str) -> Option<bool> {
        let mut flags = self.flags.as_deref()?.split_whitespace();
        Some(flags.any(|word| word == flag))
    }

    /// Whether a hypervisor runs this CPU.
    pub fn is_virtual(&self) -> bool {
        self.has("hypervisor") == Some(true)
    }
}

/// The frequency governor of the first CPU.
pub fn governor(root: &Root) -> Option<String> {
    let governor = files::text(
        root,
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    )?;
    Some(governor.trim().to_owned())
}

/// The vendor, from the firmware. In a virtual machine it often names the hypervisor.
pub fn vendor(root: &Root) -> Option<String> {
    files::text(root, "/sys/class/dmi/id/sys_vendor")
}

/// `/proc/loadavg`, the averages over 1, 5 and 15 minutes. Empty if the file is not readable.
pub fn load_average(root: &Root) -> String {
    let text = files::text(root, "/proc/loadavg").unwrap_or_default();
    let averages: Vec<_> = text.trim().split(' ').take(3).collect();
    averages.join(" ")
}
