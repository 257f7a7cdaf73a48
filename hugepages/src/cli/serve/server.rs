//! One run of the server: its start, its progress, the signals for it, and its end.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use hugepages::kernel::{Root, User};
use hugepages::plan::SHORT;
use hugepages::process::end_with_parent;

use super::address::Address;
use crate::cli::output;
use crate::cli::signals::is_ignored;

/// Interval of checks of the server.
const TICK: Duration = Duration::from_millis(50);
/// Time limit to print the last lines of the server's log after its end.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Signals that ask this process to end. It forwards each signal to the server, which ends at once after the second one.
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
    /// Too few pages, before the first answer.
    Short,
}

/// Input of a run.
pub struct Start<'a> {
    pub program: &'a Path,
    pub arguments: &'a [OsString],
    pub policy: Option<&'a str>,
    /// Words before the program: they run it as another user, and end it with this process.
    pub wrapper: &'a [OsString],
    pub address: &'a Address,
    /// Bytes of huge pages that the server takes.
    pub bytes: u64,
}

impl Start<'_> {
    pub fn run(&self, signals: &Signals) -> Result<Ended> {
        let bar = output::progress_bar(output::LOADING);
        bar.set_prefix("loading");
        bar.set_length(self.bytes);
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
        let is_ready = self.watch(&mut server, &bar)?;
        bar.finish_and_clear();
        if is_ready {
            say(&format!(
                "ready at {} (Ctrl-C ends the server and returns the pages)",
                self.address
            ));
        }
        let status = server.wait().context("cannot wait for the server")?;
        signals.server.store(0, Ordering::SeqCst);
        // With a time limit, because children of a router may still hold the other end of the pipe.
        let ended = Instant::now();
        while log.as_ref().is_some_and(|log| !log.is_finished()) && ended.elapsed() < LOG_PATIENCE {
            thread::sleep(TICK);
        }
        Ok(if status.code() == Some(SHORT) && !is_ready {
            Ended::Short
        } else {
            Ended::Served(code(status))
        })
    }

    fn spawn(&self, is_piped: bool) -> Result<Child> {
        let mut words = self.wrapper.to_vec();
        words.push(self.program.into());
        if let Some(policy) = self.policy {
            words.extend(["--hugepage-policy", policy].map(OsString::from));
        }
        words.extend(self.arguments.iter().cloned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            // Its own process group, so that a Ctrl-C at the terminal reaches the server once, through this process.
            .process_group(0);
        if is_piped {
            command.stderr(Stdio::piped());
            // The log still goes to this terminal, but the server sees a pipe.
            if std::env::var_os("NO_COLOR").is_none() {
                command.env("LLAMA_LOG_COLORS", "on");
            }
        }
        if self.wrapper.is_empty() {
            end_with_parent(&mut command);
        }
        command
            .spawn()
            .with_context(|| format!("cannot run `{}`", words[0].to_string_lossy()))
    }

    /// Shows progress until the server answers. Returns `false` if the server ended first.
    fn watch(&self, server: &mut Child, bar: &ProgressBar) -> Result<bool> {
        while server
            .try_wait()
            .context("cannot wait for the server")?
            .is_none()
        {
            if self.address.answers() {
                return Ok(true);
            }
            if !bar.is_hidden() {
                let user = User::of(&Root::system(), server.id());
                bar.set_position(user.map_or(0, |user| user.bytes).min(self.bytes));
            }
            thread::sleep(TICK);
        }
        Ok(false)
    }
}

/// Prints on standard error, and ignores an error such as a closed pipe.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "serve: {text}");
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

/// The exit code in the form of a shell.
fn code(status: ExitStatus) -> u8 {
    let of_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(of_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
