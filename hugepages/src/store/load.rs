//! Filling a store with a model, without serving it.
//!
//! A `llama-server` fills the store with the code of a normal start, so a later start with the same arguments attaches.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::{Reason, StoreError};
use crate::child_process::end_with_parent;
use crate::plan::{Plan, PlanError, SHORT, cause_and_hint};

/// Interval of checks for a cancel.
const TICK: Duration = Duration::from_millis(50);
/// Time limit for a server to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes to keep of a log, from its start, because the first errors contain the cause.
const LOG_BYTES: u64 = 8 << 20;

/// How models are loaded.
#[derive(Debug, Clone)]
pub struct Loader {
    /// The `llama-server` that loads.
    pub server: PathBuf,
    /// The store's directory, or `auto`.
    pub store: OsString,
    /// More arguments of the server, the same as for the later start.
    pub arguments: Vec<OsString>,
    /// Words before the server's program, for example `setpriv …`, which runs it as another user.
    pub wrapper: Vec<OsString>,
}

/// Progress of the server, in its own unit.
#[derive(Deserialize)]
struct Line {
    done: u64,
    total: u64,
}

impl Loader {
    /// The server's arguments for a model.
    pub fn arguments_for(&self, model: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--model".into(), model.into()];
        arguments.extend(self.arguments_of_store());
        arguments
    }

    /// The server's arguments without a model, if [`Loader::arguments`] name one.
    pub fn arguments_of_store(&self) -> Vec<OsString> {
        let mut arguments = self.arguments.clone();
        // Last, so that they override the user's arguments.
        arguments.extend(["--hugepages", "--hugepage-store"].map(OsString::from));
        arguments.push(self.store.clone());
        arguments
    }

    /// The plan of the server with these arguments, computed as the server's user.
    ///
    /// # Errors
    /// As [`Plan::ask`].
    pub fn plan(&self, arguments: &[OsString]) -> Result<Plan, PlanError> {
        Plan::ask_through(&self.wrapper, &self.server, arguments)
    }

    /// Loads a model. `progress` gets the amount done and the total.
    ///
    /// The server ends with this process, even after SIGKILL. Incomplete parts return their pages.
    ///
    /// # Errors
    /// [`StoreError::LoadShort`], [`StoreError::Load`], [`StoreError::Start`], and [`StoreError::Cancelled`] once `stop` is set.
    pub fn load(
        &self,
        model: &Path,
        stop: &AtomicBool,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        self.load_as(&self.arguments_for(model), stop, progress)
    }

    /// The same with all arguments of the server.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_as(
        &self,
        arguments: &[OsString],
        stop: &AtomicBool,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let mut server = Server(self.spawn(arguments)?);
        let log = server.0.stderr.take().map(|stderr| {
            thread::spawn(move || {
                let mut log = Vec::new();
                let mut stderr = BufReader::new(stderr);
                let _ = stderr.by_ref().take(LOG_BYTES).read_to_end(&mut log);
                // A server blocks on a full pipe, so a thread reads it.
                let _ = io::copy(&mut stderr, &mut io::sink());
                String::from_utf8_lossy(&log).into_owned()
            })
        });
        let (sender, lines) = mpsc::channel();
        let stdout = server.0.stdout.take();
        thread::spawn(move || {
            let lines = stdout.into_iter().flat_map(|it| BufReader::new(it).lines());
            for line in lines.map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str::<Line>(&line)
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        loop {
            match lines.recv_timeout(TICK) {
                Ok(line) => progress(line.done, line.total),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stop.load(Ordering::Relaxed) {
                server.end();
                return Err(StoreError::Cancelled);
            }
        }
        let status = server.wait(stop).map_err(|source| StoreError::Start {
            program: self.server.clone(),
            source,
        })?;
        let log = log.and_then(|log| log.join().ok()).unwrap_or_default();
        if stop.load(Ordering::Relaxed) && !status.success() {
            return Err(StoreError::Cancelled);
        }
        if status.success() {
            return Ok(());
        }
        let said = match cause_and_hint(&log) {
            Some((message, hint)) => Reason { message, hint },
            None => Reason {
                message: format!("llama-server ended with {status} and no message"),
                hint: None,
            },
        };
        Err(if status.code() == Some(SHORT) {
            StoreError::LoadShort { said }
        } else {
            StoreError::Load { said }
        })
    }

    fn spawn(&self, arguments: &[OsString]) -> Result<Child, StoreError> {
        let server = self.server.as_os_str();
        let mut words = self.wrapper.iter().map(OsString::as_os_str).chain([server]);
        let mut command = Command::new(words.next().unwrap_or(server));
        command
            .args(words)
            .args(arguments)
            // A running server may use the port.
            .args(["--hugepage-load", "--host", "127.0.0.1", "--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its own process group, so that a Ctrl-C reaches the server once, through this process.
            .process_group(0);
        end_with_parent(&mut command);
        command.spawn().map_err(|source| StoreError::Start {
            program: self.server.clone(),
            source,
        })
    }
}

/// A process that ends when the value is dropped.
struct Server(Child);

impl Server {
    /// Asks the process to end, and kills it after the time limit.
    fn end(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(TICK / 10);
        }
    }

    /// Waits for the end of the process, which closed its output.
    fn wait(&mut self, stop: &AtomicBool) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if stop.load(Ordering::Relaxed) {
                self.end();
                let _ = self.0.kill();
                return self.0.wait();
            }
            thread::sleep(TICK / 10);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
