//! Starts the emulated machine, nodes with CPUs and a pool each, and always stops it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::iter;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cases::{self, PAGES_PER_NODE};

pub const QEMU: &str = "qemu-system-x86_64";

/// Emulation gives the same CPU on every host, and needs no access to /dev/kvm. QEMU 7.2 emulates `cmpxchg16b` wrongly, and kernels use it
/// since 6.5, so the CPU lacks it. Firmware, kernel and initramfs use the memory below 4 GiB. Above 4 GiB each node has whole, aligned
/// gigabytes, and one of them is its 1 GiB page.
fn arguments(machine: cases::Machine) -> Vec<String> {
    let cases::Machine {
        nodes,
        cpus_per_node,
        node_gib,
        ..
    } = machine;
    let (cpus, gib) = (nodes * cpus_per_node, nodes * node_gib);
    let machine = format!(
        "-machine q35,accel=tcg,max-ram-below-4g=2G -cpu max,cx16=off -smp {cpus} -m {gib}G
         -nodefaults -display none -no-reboot"
    );
    let of_nodes = (0..nodes).map(|node| {
        let (first, last) = (node * cpus_per_node, (node + 1) * cpus_per_node - 1);
        format!(
            "-object memory-backend-ram,id=memory{node},size={node_gib}G
             -numa node,nodeid={node},cpus={first}-{last},memdev=memory{node}"
        )
    });
    iter::once(machine)
        .chain(of_nodes)
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The pools at boot, as arguments of the kernel.
fn pools(machine: cases::Machine) -> String {
    let of_each = |pages: u64| {
        let pools = (0..machine.nodes).map(|node| format!("{node}:{pages}"));
        pools.collect::<Vec<_>>().join(",")
    };
    let large = if machine.has_large {
        format!("hugepagesz=1G hugepages={} ", of_each(1))
    } else {
        String::new()
    };
    format!("{large}hugepagesz=2M hugepages={}", of_each(PAGES_PER_NODE))
}

/// The limit for all cases of a machine together, which take some minutes. It only ends a machine that hangs.
const LIMIT: Duration = Duration::from_secs(3000);

/// The machine runs until this value is dropped.
pub struct Machine {
    child: Child,
    lines: Receiver<String>,
    interrupted: Arc<AtomicBool>,
    deadline: Instant,
}

impl Machine {
    /// Starts QEMU. The file `console` receives the kernel's messages.
    pub fn start(
        machine: cases::Machine,
        kernel: &Path,
        initramfs: &Path,
        console: &Path,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self> {
        let mut child = command(machine, kernel, initramfs, console)
            .spawn()
            .with_context(|| format!("cannot run `{QEMU}`"))?;
        let report = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut report = BufReader::new(report);
            let mut line = Vec::new();
            while report.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self {
            child,
            lines,
            interrupted,
            deadline: Instant::now() + LIMIT,
        })
    }

    /// The next line of the report; `None` if the machine is off or exceeds the time limit.
    pub fn line(&self) -> Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => return Ok(Some(line)),
                Err(_) if self.interrupted.load(Ordering::Relaxed) => bail!("interrupted"),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if Instant::now() > self.deadline => {
                    eprintln!("the guest exceeded the time limit of {} s", LIMIT.as_secs());
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(machine: cases::Machine, kernel: &Path, initramfs: &Path, console: &Path) -> Command {
    let mut console_file = OsString::from("file:");
    console_file.push(console);
    // The machine must end even if this process is killed.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", QEMU])
        .args(arguments(machine))
        .arg("-serial")
        .arg(console_file)
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            // A busy host may be too slow for the kernel's check of the timer.
            // A kernel at a random place may be in the only gigabytes that a node has for its page.
            "console=ttyS0 panic=-1 no_timer_check nokaslr {} hugetlb_free_vmemmap=on",
            pools(machine)
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}
