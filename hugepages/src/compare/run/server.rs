//! One `llama-server` from its start to its end, with the counts of the kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use ureq::Agent;

use super::cgroup::Cgroup;
use super::{Cancelled, CompareError, Side};
use crate::child_process::end_with_parent;
use crate::compare::measure::watch::Watch;
use crate::compare::measure::{Footprint, Load, Moment, Sample, Speed, answers, speed};
use crate::kernel::Root;
use crate::kernel::processes::stat::Stat;
use crate::plan::cause_and_hint;
use crate::port::Port;

/// Interval of requests to `/health`.
const TICK: Duration = Duration::from_millis(5);

/// Time limit for one request to `/health`.
const HEALTH: Duration = Duration::from_secs(2);

/// Time limit for a server to end after a signal.
const FAREWELL: Duration = Duration::from_secs(10);

/// The timed request, with as little computation before the first token as possible.
const SHORT_PROMPT: &str = "a";

/// What the log says before the reason why the server keeps no context.
const NOT_KEPT: &str = "no conversation will remain in memory after this process ends: ";

/// The environment of a server.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Time limit to become ready, and for each answer.
    pub patience: Duration,
    /// Set when the user cancels.
    pub cancelled: &'a AtomicBool,
    /// Cgroup of the server.
    pub cgroup: Option<&'a Cgroup>,
}

/// A running server. It ends when the value is dropped, or when this process ends, even after SIGKILL.
pub struct Server<'a> {
    side: &'a Side,
    host: Host<'a>,
    child: Child,
    command: Vec<String>,
    began: Instant,
    agent: Agent,
    url: String,
    _port: Port,
    log: File,
    memory: Option<Watch>,
}

impl<'a> Server<'a> {
    /// Starts it with the model of the side.
    pub fn start(side: &'a Side, host: Host<'a>) -> Result<Self, CompareError> {
        Self::launch(side, host, &["--model".as_ref(), side.model.as_os_str()])
    }

    /// Starts a router, which runs at most one of the models in a directory at a time.
    pub fn start_router(
        side: &'a Side,
        models: &Path,
        host: Host<'a>,
    ) -> Result<Self, CompareError> {
        let models = ["--models-dir".as_ref(), models.as_os_str()];
        let most = ["--models-max", "1"].map(OsStr::new);
        Self::launch(side, host, &[models, most].concat())
    }

    fn launch(side: &'a Side, host: Host<'a>, models: &[&OsStr]) -> Result<Self, CompareError> {
        if host.cancelled.load(Ordering::Relaxed) {
            return Err(Cancelled.into());
        }
        let start_error = |source| CompareError::Start {
            program: side.program.clone(),
            source,
        };
        let log = tempfile::tempfile().map_err(start_error)?;
        let port = Port::reserve().map_err(start_error)?;
        let address =
            ["--host", "127.0.0.1", "--port", &port.number.to_string()].map(str::to_owned);
        let args = [&address[..], &side.args].concat();
        let variables = side.environment.iter();
        let mut line: Vec<_> = variables
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        line.push(side.program.to_string_lossy().into_owned());
        line.extend(models.iter().map(|arg| arg.to_string_lossy().into_owned()));
        line.extend(args.iter().cloned());
        let mut command = Command::new(&side.program);
        command
            .args(models)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(start_error)?)
            .stderr(log.try_clone().map_err(start_error)?)
            // Its own process group, so that a Ctrl-C reaches it once, through this process.
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            // Variables for the user's own servers must not change the comparison.
            if name.to_string_lossy().starts_with("LLAMA_ARG_") {
                command.env_remove(name);
            }
        }
        command.envs(&side.environment);
        let config = Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(host.patience)).build().into();
        let began = Instant::now();
        let child = spawn(&mut command, host.cgroup).map_err(start_error)?;
        let memory = Watch::start(child.id(), began);
        Ok(Self {
            side,
            host,
            child,
            command: line,
            began,
            agent,
            url: format!("http://127.0.0.1:{}", port.number),
            _port: port,
            log,
            memory: Some(memory),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn command(&self) -> Vec<String> {
        self.command.clone()
    }

    /// Waits until the server is ready. Returns the seconds since its start.
    pub fn ready(&mut self) -> Result<f64, CompareError> {
        loop {
            if self.host.cancelled.load(Ordering::Relaxed) {
                return Err(Cancelled.into());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let (said, hint) = self.last_words();
                return Err(CompareError::Ended {
                    name: self.side.name.clone(),
                    status: status_name(status),
                    said,
                    hint,
                });
            }
            let health = self.agent.get(format!("{}/health", self.url));
            let health = health.config().timeout_global(Some(HEALTH)).build();
            if health.call().is_ok_and(|answer| answer.status() == 200) {
                return Ok(self.began.elapsed().as_secs_f64());
            }
            if self.began.elapsed() > self.host.patience {
                return Err(CompareError::Hung {
                    name: self.side.name.clone(),
                    seconds: self.host.patience.as_secs(),
                });
            }
            thread::sleep(TICK);
        }
    }

    /// Answers to all questions of [`answers::QUESTIONS`].
    pub fn speak(&mut self, tokens: u32) -> Result<Vec<Vec<Value>>, CompareError> {
        let questions = answers::QUESTIONS.iter();
        questions
            .map(|(prompt, temperature)| {
                let request = answers::request(prompt, *temperature, tokens);
                let (answer, _) = self.complete(&request)?;
                answers::tokens(&answer).ok_or_else(|| self.no_answer(&answer.to_string()))
            })
            .collect()
    }

    /// Requests a completion. Returns the answer and its time.
    pub fn complete(&mut self, request: &Value) -> Result<(Value, Instant), CompareError> {
        self.ask_completion(|agent, url| speed::post(agent, url, request))
    }

    /// Waits for the answers of `/completion`, or for a cancel. `request` gets the URL.
    pub fn ask_completion<T: Send>(
        &mut self,
        request: impl FnOnce(&Agent, &str) -> Result<T, String> + Send,
    ) -> Result<T, CompareError> {
        self.ask("/completion", request)
    }

    /// Waits for the answers of a path, or for a cancel. `request` gets the URL.
    pub fn ask<T: Send>(
        &mut self,
        path: &str,
        request: impl FnOnce(&Agent, &str) -> Result<T, String> + Send,
    ) -> Result<T, CompareError> {
        let url = format!("{}{path}", self.url);
        let answer = thread::scope(|scope| {
            let (sender, answer) = channel();
            let agent = self.agent.clone();
            scope.spawn(move || sender.send(request(&agent, &url)));
            loop {
                match answer.recv_timeout(10 * TICK) {
                    Ok(answer) => return Ok(answer),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        return Ok(Err("the connection closed without an answer".to_owned()));
                    }
                }
                if self.host.cancelled.load(Ordering::Relaxed) {
                    // This also ends the request.
                    let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
                    return Err(Cancelled.into());
                }
            }
        });
        answer.and_then(|answer| answer.map_err(|reason| self.no_answer(&reason)))
    }

    /// The server's report of its load.
    pub fn load(&self) -> Option<Load> {
        serde_json::from_value(self.props()?["hugepages"]["load"].clone()).ok()
    }

    /// Size of a slot's context in tokens.
    pub fn slot_context(&mut self) -> Result<u64, CompareError> {
        let props = self.props().unwrap_or_default();
        let tokens = props["default_generation_settings"]["n_ctx"].as_u64();
        tokens.ok_or_else(|| self.no_answer("`/props` has no size of the context"))
    }

    /// Waits until the server sleeps. The question does not wake it.
    pub fn sleeps(&mut self) -> Result<(), CompareError> {
        let asked = Instant::now();
        while asked.elapsed() < self.host.patience {
            if self.host.cancelled.load(Ordering::Relaxed) {
                return Err(Cancelled.into());
            }
            match self.props() {
                Some(props) if props["is_sleeping"] == true => return Ok(()),
                Some(_) => thread::sleep(TICK),
                None => return Err(self.no_answer("`/props` does not answer")),
            }
        }
        Err(self.no_answer("the server does not sleep"))
    }

    fn props(&self) -> Option<Value> {
        let answer = self.agent.get(format!("{}/props", self.url)).call().ok()?;
        answer.into_body().read_json().ok()
    }

    /// The highest observed memory so far.
    pub fn peak(&mut self) -> Moment {
        self.memory.take().map(Watch::stop).unwrap_or_default().peak
    }

    pub fn counts(&mut self) -> Result<Stat, CompareError> {
        Stat::read(&Root::system(), self.pid()).ok_or_else(|| self.no_answer("the process ended"))
    }

    /// Waits for ready and for the first token. Returns the seconds of both since the start.
    pub fn first_token(&mut self) -> Result<(f64, f64), CompareError> {
        let ready = self.ready()?;
        let (answer, came) = self.complete(&answers::request(SHORT_PROMPT, 0.0, 1))?;
        if answers::tokens(&answer).is_none() {
            return Err(self.no_answer(&answer.to_string()));
        }
        Ok((ready, self.seconds_until(came)))
    }

    /// Seconds since the start.
    pub fn seconds_until(&self, moment: Instant) -> f64 {
        (moment - self.began).as_secs_f64()
    }

    /// Measures the first token and its cost, then the speed. Calls `residue` directly after the first token.
    pub fn measure(
        mut self,
        speed_tokens: u32,
        residue: impl FnOnce() -> Result<u64, CompareError>,
    ) -> Result<Sample, CompareError> {
        let (seconds_to_health, seconds_to_token) = self.first_token()?;
        let counts = self.counts()?;
        let seen = self.memory.take().map(Watch::stop).unwrap_or_default();
        let residue_bytes = residue()?;
        let speed = match speed_tokens {
            0 => None,
            tokens => Some(self.ask_completion(|agent, url| Speed::measure(agent, url, tokens))?),
        };
        Ok(Sample {
            side: self.side.name.clone(),
            command: self.command(),
            seconds_to_health,
            seconds_to_token,
            user_seconds: counts.user_seconds,
            system_seconds: counts.system_seconds,
            minor_faults: counts.minor_faults,
            major_faults: counts.major_faults,
            peak_own_bytes: seen.peak.own_bytes,
            peak_file_bytes: seen.peak.file_bytes,
            residue_bytes,
            load: self.load(),
            speed,
            footprint: Footprint::read(self.pid()),
            moments: seen.moments,
        })
    }

    pub fn no_answer(&mut self, reason: &str) -> CompareError {
        let name = self.side.name.clone();
        // A dying process closes its connection shortly before the kernel reports its end.
        let asked = Instant::now();
        while asked.elapsed() < 40 * TICK {
            if let Ok(Some(status)) = self.child.try_wait() {
                return CompareError::Crashed {
                    name,
                    status: status_name(status),
                    said: self.last_words().0,
                };
            }
            thread::sleep(TICK);
        }
        let reason = reason.to_owned();
        CompareError::NoAnswer { name, reason }
    }

    /// Why the server ended: the cause and the hint in its log, or the last line of the log.
    fn last_words(&self) -> (String, Option<String>) {
        let text = self.log_text();
        cause_and_hint(&text)
            .unwrap_or_else(|| (text.lines().last().unwrap_or_default().to_owned(), None))
    }

    /// Checks that the log does not say why the server, or a server of this router, keeps no context.
    pub fn keeps_context(&self) -> Result<(), CompareError> {
        let text = self.log_text();
        let mut lines = text.lines();
        match lines.find_map(|line| Some(line.split_once(NOT_KEPT)?.1.to_owned())) {
            None => Ok(()),
            Some(reason) => Err(CompareError::NoContext {
                name: self.side.name.clone(),
                reason,
            }),
        }
    }

    /// The log so far. Reads at an offset, because the server writes at the position that it shares with this process. An unreadable log
    /// gives no message.
    fn log_text(&self) -> String {
        let size = self.log.metadata().map_or(0, |log| log.len());
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        let count = self.log.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..count]).into_owned()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pid = Pid::from_child(&self.child);
        // Ends the server with a signal, and kills it with its children after the time limit.
        let _ = kill_process(pid, Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < FAREWELL {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(TICK);
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Starts a program in a cgroup. The program ends when this thread ends.
pub fn spawn(command: &mut Command, cgroup: Option<&Cgroup>) -> io::Result<Child> {
    end_with_parent(command);
    if let Some(members) = cgroup.map(Cgroup::members).transpose()? {
        let enter = move || {
            rustix::io::write(members.as_fd(), b"0")?;
            Ok(())
        };
        // SAFETY: between fork and exec it makes one system call, and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }
    command.spawn()
}

fn status_name(status: ExitStatus) -> String {
    status.code().map_or_else(
        || format!("signal {}", status.signal().unwrap_or_default()),
        |code| format!("exit code {code}"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_said_to_have_ended() {
        let side = Side {
            name: "false".into(),
            program: "/bin/false".into(),
            model: "/none".into(),
            args: Vec::new(),
            environment: BTreeMap::new(),
        };
        let flag = AtomicBool::new(false);
        let host = Host {
            patience: Duration::from_secs(60),
            cancelled: &flag,
            cgroup: None,
        };
        let mut server = Server::start(&side, host).unwrap();
        let error = server.ready().unwrap_err();
        assert!(
            matches!(&error, CompareError::Ended { status, .. } if status == "exit code 1"),
            "{error}"
        );
    }
}
