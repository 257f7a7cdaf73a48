//! Properties of the machine that can explain a figure.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::kernel::Root;
use crate::kernel::files;
use crate::kernel::{mounts, nodes};
use crate::size::ByteSize;

/// The machine at the start of the comparison. Unknown properties are empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// Cores that this process can use.
    pub cores: usize,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// Frequency governor.
    pub governor: String,
    /// All memory in bytes.
    pub memory: u64,
    /// NUMA nodes.
    pub nodes: usize,
    /// Transparent huge pages: the mode in brackets.
    pub thp: String,
    /// File system of the model.
    pub file_system: String,
    /// Read-ahead of its device.
    pub read_ahead_kb: String,
    /// Load averages.
    pub load_average: String,
}

impl Machine {
    /// Reads all properties.
    pub fn read(model: &Path) -> Self {
        let root = Root::system();
        let text = |path| {
            let text = files::text(&root, path).unwrap_or_default();
            text.trim().to_owned()
        };
        let cpuinfo = text("/proc/cpuinfo");
        let of_cpu = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = files::kib_field(&text("/proc/meminfo"), "MemTotal");
        let (file_system, read_ahead_kb) = mount_of(model).unwrap_or_default();
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            cpu: of_cpu("model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            virtual_machine: of_cpu("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory: memory.unwrap_or(0),
            nodes: nodes::all(&root).len(),
            thp: text("/sys/kernel/mm/transparent_hugepage/enabled"),
            file_system,
            read_ahead_kb,
            load_average: text("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn known(text: &str) -> &str {
            if text.is_empty() { "unknown" } else { text }
        }
        write!(
            f,
            "kernel {}, {} ({} cores{}, {} NUMA nodes, {}), governor {}, THP {}, {} with read_ahead_kb {}, load {} at the start",
            self.kernel,
            known(&self.cpu),
            self.cores,
            if self.virtual_machine {
                ", virtual"
            } else {
                ""
            },
            self.nodes,
            ByteSize::new(self.memory),
            known(&self.governor),
            known(&self.thp),
            known(&self.file_system),
            known(&self.read_ahead_kb),
            known(&self.load_average)
        )
    }
}

/// Type of the file system, and read-ahead of the device under it.
fn mount_of(path: &Path) -> Option<(String, String)> {
    let device = fs::metadata(path).ok()?.dev();
    let id = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let mounts = mounts::all(&Root::system()).into_iter();
    let file_system = mounts.map(|mount| (mount.device, mount.kind));
    let (_, file_system) = file_system.into_iter().find(|(device, _)| *device == id)?;
    let bdi = fs::read_to_string(format!("/sys/class/bdi/{id}/read_ahead_kb")).unwrap_or_default();
    Some((file_system, bdi.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_memory_and_a_file_system() {
        let machine = Machine::read(Path::new("/proc/self/exe"));
        assert!(!machine.kernel.is_empty());
        assert!(machine.memory > 1 << 20 && machine.cores > 0 && machine.nodes > 0);
        assert!(!machine.file_system.is_empty());
    }
}
