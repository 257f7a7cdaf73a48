//! Properties of the machine that can explain a figure.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::kernel::machine::{self, Cpu};
use crate::kernel::{Root, meminfo, mounts, nodes, running, thp};
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
        let cpu = Cpu::read(&root);
        let meminfo = meminfo::read(&root).unwrap_or_default();
        let (file_system, read_ahead_kb) = mount_of(model).unwrap_or_default();
        Self {
            kernel: running::release(&root).unwrap_or_default(),
            virtual_machine: cpu.is_virtual(),
            cpu: cpu.model.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            governor: machine::governor(&root).unwrap_or_default(),
            memory: meminfo.bytes("MemTotal").unwrap_or(0),
            nodes: nodes::all(&root).len(),
            thp: thp::modes(&root).unwrap_or_default(),
            file_system,
            read_ahead_kb,
            load_average: machine::load_average(&root),
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
    let root = Root::system();
    let mut mounts = mounts::all(&root).into_iter();
    let mount = mounts.find(|mount| mount.device == id)?;
    let read_ahead_kb = mount.read_ahead_kb(&root).unwrap_or_default();
    Some((mount.kind, read_ahead_kb))
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
