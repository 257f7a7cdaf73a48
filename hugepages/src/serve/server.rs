//! One run of the server: its start, its progress, and its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Address, Event, ForwardedSignals, Progress, ServeError};
use crate::child_process::end_with_parent;
use crate::kernel::{Root, User};
use crate::plan::SHORT;

/// Interval of checks of the server.
const TICK: Duration = Duration::from_millis(50);
/// Time limit to print the last lines of the server's log after its end.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// How a run ended.
pub(super) enum Ended {
    /// The exit code of the server, as a shell reports it.
    Served(u8),
    /// Too few pages, before the first answer.
    Short,
}

/// Input of a run.
pub(super) struct Run<'a> {
    pub program: &'a Path,
    pub arguments: &'a [OsString],
    pub policy: Option<&'a str>,
    /// Words before the program: they run it as another user, and end it with this process.
    pub wrapper: &'a [OsString],
    pub address: &'a Address,
    /// Bytes of huge pages that the server takes.
    pub bytes: u64,
    pub progress: &'a Arc<dyn Progress>,
}

impl Run<'_> {
    pub fn wait(&self, signals: &ForwardedSignals) -> Result<Ended, ServeError> {
        self.progress.begin(self.bytes);
        let mut server = self.spawn()?;
        signals.forward_to(&server);
        let log = server.stderr.take().map(|stderr| {
            let progress = Arc::clone(self.progress);
            thread::spawn(move || pass_on(stderr, &*progress))
        });
        let is_ready = self.watch(&mut server)?;
        self.progress.end();
        if is_ready {
            self.progress.tell(&Event::Ready(self.address));
        }
        let status = server.wait().map_err(ServeError::Wait)?;
        signals.forward_to_none();
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

    fn spawn(&self) -> Result<Child, ServeError> {
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
        if self.progress.is_shown() {
            command.stderr(Stdio::piped());
            // The log still goes to this terminal, but the server sees a pipe.
            if std::env::var_os("NO_COLOR").is_none() {
                command.env("LLAMA_LOG_COLORS", "on");
            }
        }
        if self.wrapper.is_empty() {
            end_with_parent(&mut command);
        }
        command.spawn().map_err(|source| ServeError::Start {
            program: words[0].to_string_lossy().into_owned(),
            source,
        })
    }

    /// Shows progress until the server answers. Returns `false` if the server ended first.
    fn watch(&self, server: &mut Child) -> Result<bool, ServeError> {
        while server.try_wait().map_err(ServeError::Wait)?.is_none() {
            if self.address.answers() {
                return Ok(true);
            }
            if self.progress.is_shown() {
                let user = User::of(&Root::system(), server.id());
                let loaded = user.map_or(0, |user| user.bytes).min(self.bytes);
                self.progress.loaded(loaded);
            }
            thread::sleep(TICK);
        }
        Ok(false)
    }
}

/// Passes the server's log on, line by line.
fn pass_on(stderr: ChildStderr, progress: &dyn Progress) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        progress.log(&line);
        line.clear();
    }
}

/// The exit code in the form of a shell.
pub(super) fn code(status: ExitStatus) -> u8 {
    let of_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(of_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
