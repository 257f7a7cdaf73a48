//! Pages on loan: a process that returns its pages when the other end of its input closes, so however its owner ends.

use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use llama_hugepages::pool::HugePageSize;

/// A process that keeps pages until it is dropped.
pub struct Lease {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Lease {
    /// Asks for enough pages that `pages` of them are usable, with further arguments of `hugepages pool reserve`. Returns the
    /// answer, too. `None` if `cancelled` was set meanwhile.
    pub fn ask(
        size: HugePageSize,
        pages: u64,
        args: &[&str],
        cancelled: &AtomicBool,
    ) -> Result<Option<(Self, String)>> {
        let own = env::current_exe().context("cannot tell where this program lies")?;
        let mut holder = Command::new(own)
            .args(["pool", "reserve", &pages.to_string(), "--size"])
            .args([&size.short_name(), "--usable", "--try-hard", "--lease"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for this process, which ends it.
            .process_group(0)
            .spawn()
            .context("cannot start `hugepages pool reserve --lease`")?;
        let output = holder.stdout.take();
        let lease = Self {
            input: holder.stdin.take(),
            holder,
        };
        let (sender, answer) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                // One that ends without a word says nothing.
                let _ = BufReader::new(output).read_line(&mut line);
            }
            sender.send(line)
        });
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(Some((lease, line))),
                Err(RecvTimeoutError::Disconnected) => return Ok(Some((lease, String::new()))),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancelled.load(Ordering::Relaxed) {
                lease.abandon();
                return Ok(None);
            }
        }
    }

    /// The process may wait for a lock that another command holds. Once it has the lock, it finds its input closed and returns the
    /// pages at once.
    fn abandon(mut self) {
        drop(self.input.take());
        for _ in 0..100 {
            if matches!(self.holder.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        std::mem::forget(self);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.wait();
    }
}
