//! One run of the server: its start, its progress, the signals for it, and its end.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::address::Address;
use super::invoker::Invoker;
use super::say;
use crate::cli::output;
use crate::cli::signals::is_ignored;

/// How often a server is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Exit code of a server that has too few pages or too little memory.
const SHORT: i32 = 3;
const BAR: &str = "{prefix} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Signals that ask this process to end: each is passed on to the server, which takes the second one as "at once".
pub struct Signals {
    stopped: Arc<AtomicBool>,
    /// The server's process, 0 while none runs.
    server: Arc<AtomicI32>,
}

impl Signals {
    pub fn new() -> Result<Self> {
        let heeded = [SIGINT, SIGTERM, SIGHUP];
        let heeded = heeded.iter().filter(|signal| !is_ignored(**signal));
        let mut signals = signal_hook::iterator::Signals::new(heeded)
            .context("cannot install a signal handler")?;
        let stopped = Arc::new(AtomicBool::new(false));
        let server = Arc::new(AtomicI32::new(0));
        let (is_stopped, pid) = (Arc::clone(&stopped), Arc::clone(&server));
        thread::spawn(move || {
            for signal in signals.forever() {
                is_stopped.store(true, Ordering::SeqCst);
                let server = Pid::from_raw(pid.load(Ordering::SeqCst));
                // A terminal that hangs up ends the server as `kill` does.
                let signal = if signal == SIGINT {
                    Signal::INT
                } else {
                    Signal::TERM
                };
                if let Some(server) = server {
                    let _ = kill_process(server, signal);
                }
            }
        });
        Ok(Self { stopped, server })
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub fn flag(&self) -> &AtomicBool {
        &self.stopped
    }
}

/// How a run ended.
pub enum Ended {
    /// The exit code of the server, as a shell reports it.
    Served(u8),
    /// Too few pages, before it answered anybody.
    Short,
}

/// What a run needs.
pub struct Start<'a> {
    pub program: &'a Path,
    pub arguments: &'a [OsString],
    pub policy: Option<&'a str>,
    pub invoker: Option<&'a Invoker>,
    pub address: &'a Address,
    /// Bytes of huge pages that the server takes.
    pub bytes: u64,
}

impl Start<'_> {
    pub fn run(&self, signals: &Signals) -> Result<Ended> {
        let bar = output::progress_bar(BAR);
        bar.set_prefix("loading");
        let mut server = self.spawn(!bar.is_hidden())?;
        let pid = Pid::from_child(&server);
        signals
            .server
            .store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
        if signals.stopped() {
            let _ = kill_process(pid, Signal::TERM);
        }
        let log = server.stderr.take().map(|stderr| {
            let bar = bar.clone();
            thread::spawn(move || pass_on(stderr, &bar))
        });
        let (is_ready, status) = self.watch(&mut server, &bar)?;
        signals.server.store(0, Ordering::SeqCst);
        bar.finish_and_clear();
        // Children of a router may still hold the other end.
        if let Some(log) = log.filter(thread::JoinHandle::is_finished) {
            let _ = log.join();
        }
        Ok(if status.code() == Some(SHORT) && !is_ready {
            Ended::Short
        } else {
            Ended::Served(code(status))
        })
    }

    fn spawn(&self, is_piped: bool) -> Result<Child> {
        let mut words = self.invoker.map(Invoker::wrapper).unwrap_or_default();
        words.push(self.program.into());
        if let Some(policy) = self.policy {
            words.extend(["--hugepage-policy", policy].map(OsString::from));
        }
        words.extend(self.arguments.iter().cloned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            // A Ctrl-C at the terminal is passed on once, from here.
            .process_group(0);
        if is_piped {
            command.stderr(Stdio::piped());
            // The log goes to this terminal all the same.
            if std::env::var_os("NO_COLOR").is_none() {
                command.env("LLAMA_LOG_COLORS", "on");
            }
        }
        if self.invoker.is_none() {
            let parent = getpid();
            // SAFETY: between fork and exec this makes two system calls, and allocates nothing.
            unsafe {
                command.pre_exec(move || {
                    set_parent_process_death_signal(Some(Signal::KILL))?;
                    // The parent may have died before the call.
                    if getppid() == Some(parent) {
                        Ok(())
                    } else {
                        Err(io::ErrorKind::Interrupted.into())
                    }
                });
            }
        }
        command
            .spawn()
            .with_context(|| format!("cannot run `{}`", words[0].to_string_lossy()))
    }

    /// Waits for the end, and shows progress until the server answers.
    fn watch(&self, server: &mut Child, bar: &ProgressBar) -> Result<(bool, ExitStatus)> {
        let mut is_ready = false;
        loop {
            if let Some(status) = server.try_wait().context("cannot wait for the server")? {
                return Ok((is_ready, status));
            }
            if is_ready {
                let status = server.wait().context("cannot wait for the server")?;
                return Ok((true, status));
            }
            if let Some(url) = self.address.ready() {
                is_ready = true;
                bar.finish_and_clear();
                say(&format!(
                    "ready at {url} (Ctrl-C ends the server and returns the pages)"
                ));
            } else if !bar.is_hidden() {
                bar.set_length(self.bytes);
                bar.set_position(hugetlb_bytes(server.id()).min(self.bytes));
            }
            thread::sleep(TICK);
        }
    }
}

/// Bytes of huge pages that a process has touched; 0 if the kernel does not tell.
fn hugetlb_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("HugetlbPages:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Prints the server's log above the bar, line by line.
fn pass_on(stderr: ChildStderr, bar: &ProgressBar) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        bar.suspend(|| {
            let _ = io::stderr().write_all(&line);
        });
        line.clear();
    }
}

/// As a shell reports it.
fn code(status: ExitStatus) -> u8 {
    let of_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(of_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
