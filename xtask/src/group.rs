//! A process, and the processes that it started: all of them end with the command.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Time for a process to clean up after Ctrl-C.
const END: Duration = Duration::from_secs(20);

/// A running process, and the processes that it started. Dropping the value kills all of them.
pub struct Group(Child);

impl Group {
    /// Starts a program as the first process of a group.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn();
        Ok(Self(child.with_context(|| format!("cannot run `{name}`"))?))
    }

    /// The exit code of the first process. An interrupt ends the group.
    pub fn wait(mut self, interrupted: &AtomicBool) -> Result<i32> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return status.code().context("the process was killed");
            }
            if interrupted.load(Ordering::Relaxed) {
                self.end()?;
                bail!("interrupted");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(&mut self) -> Result<()> {
        self.signal(Signal::INT);
        let start = Instant::now();
        while self.0.try_wait()?.is_none() && start.elapsed() < END {
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // The group may be empty by now.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    /// Kills the whole group, so that no process outlives the command.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}
