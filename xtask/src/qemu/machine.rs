//! Starts the emulated machine, two nodes with a CPU and a pool each, and always stops it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cases::PAGES_PER_NODE;

pub const QEMU: &str = "qemu-system-x86_64";

/// Emulation gives the same CPU on every host, and needs no access to /dev/kvm. Firmware, kernel and initramfs use the little
/// memory below 4 GiB. Above 4 GiB each node has whole, aligned gigabytes, and one of them is its 1 GiB page.
const MACHINE: &str = "
    -machine q35,accel=tcg,max-ram-below-4g=1G -cpu max -smp 2 -m 6G
    -object memory-backend-ram,id=memory0,size=3G -numa node,nodeid=0,cpus=0,memdev=memory0
    -object memory-backend-ram,id=memory1,size=3G -numa node,nodeid=1,cpus=1,memdev=memory1
    -nodefaults -display none -no-reboot";

/// The limit for all cases together, which take a minute.
const LIMIT: Duration = Duration::from_secs(240);

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
        kernel: &Path,
        initramfs: &Path,
        console: &Path,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self> {
        let mut child = command(kernel, initramfs, console)
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

fn command(kernel: &Path, initramfs: &Path, console: &Path) -> Command {
    let mut console_file = OsString::from("file:");
    console_file.push(console);
    // The machine must end even if this process is killed.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", QEMU])
        .args(MACHINE.split_whitespace())
        .arg("-serial")
        .arg(console_file)
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 hugepagesz=1G hugepages=0:1,1:1 \
             hugepagesz=2M hugepages=0:{PAGES_PER_NODE},1:{PAGES_PER_NODE} hugetlb_free_vmemmap=on"
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}
