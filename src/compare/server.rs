//! One `llama-server` from its start to the first token, and what the kernel counted meanwhile.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::Agent;

use super::{Cancelled, CompareError, Side};
use crate::kernel_files;
use crate::plan::cause_and_hint;

/// How often memory is looked at, and whether the server is ready.
const TICK: Duration = Duration::from_millis(5);

/// A server that has not come up by then hangs: 700 GB from a disk of 500 MB/s take less.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What both have to agree on.
const PROMPT: &str = "Once upon a time";

/// What is timed: as little as there is to compute before the first token.
const SHORT_PROMPT: &str = "a";

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Name of the side.
    pub side: String,
    /// Process start to `/health` ok.
    pub seconds_to_health: f64,
    /// Process start to the first token of `/completion`.
    pub seconds_to_token: f64,
    /// Of the process until then, in user mode. Source: `/proc/PID/stat`.
    pub user_seconds: f64,
    /// The same in the kernel.
    pub system_seconds: f64,
    /// Page faults without I/O. Source: `/proc/PID/stat`.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Highest sum of `RssAnon` and `HugetlbPages` that was seen: what nobody can take away. Source: `/proc/PID/status`.
    pub peak_own_bytes: u64,
    /// Highest `RssFile` that was seen: the model as it is mapped.
    pub peak_file_bytes: u64,
    /// Of the model in the page cache after the first token. Source: mincore(2).
    pub residue_bytes: u64,
    /// What the server itself says of its load on huge pages. Source: `/props`.
    pub load: Option<Load>,
}

impl Sample {
    /// User and system.
    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// As in `/props`: microseconds of the phases are sums over the threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the names of crate::Load, which has them documented"
)]
pub struct Load {
    pub bytes_direct: u64,
    pub bytes_cached: u64,
    pub bytes_buffered: u64,
    pub us_total: u64,
    pub us_populate: u64,
    pub us_read: u64,
    pub us_place: u64,
    pub n_threads: u32,
}

impl Load {
    /// Bytes a second, of what was read.
    pub fn bytes_per_second(&self) -> f64 {
        let bytes = self.bytes_direct + self.bytes_cached + self.bytes_buffered;
        bytes as f64 * 1e6 / self.us_total.max(1) as f64
    }
}

/// A server that runs. Dropping it ends it.
pub struct Server<'a> {
    side: &'a Side,
    child: Child,
    began: Instant,
    agent: Agent,
    url: String,
    log: File,
    cancelled: &'a AtomicBool,
    memory: Option<Watch>,
}

impl<'a> Server<'a> {
    /// Starts it.
    pub fn start(side: &'a Side, cancelled: &'a AtomicBool) -> Result<Self, CompareError> {
        let start_error = |source| CompareError::Start {
            program: side.program.clone(),
            source,
        };
        let log = tempfile::tempfile().map_err(start_error)?;
        let port = free_port().map_err(start_error)?;
        let mut command = Command::new(&side.program);
        command
            .arg("--model")
            .arg(&side.model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(&side.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(start_error)?)
            .stderr(log.try_clone().map_err(start_error)?)
            // A Ctrl-C reaches it once, from here.
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            // What the user has set for a server of his own is no part of this.
            if name.to_string_lossy().starts_with("LLAMA_ARG_") {
                command.env_remove(name);
            }
        }
        let config = Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(PATIENCE)).build().into();
        let began = Instant::now();
        let child = command.spawn().map_err(start_error)?;
        let memory = Watch::start(child.id());
        Ok(Self {
            side,
            child,
            began,
            agent,
            url: format!("http://127.0.0.1:{port}"),
            log,
            cancelled,
            memory: Some(memory),
        })
    }

    /// Waits until it is ready. Returns the seconds since its start.
    pub fn ready(&mut self) -> Result<f64, CompareError> {
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
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
            let healthy = self.agent.get(format!("{}/health", self.url)).call();
            if healthy.is_ok_and(|answer| answer.status() == 200) {
                return Ok(self.began.elapsed().as_secs_f64());
            }
            if self.began.elapsed() > PATIENCE {
                return Err(CompareError::Hung {
                    name: self.side.name.clone(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            thread::sleep(TICK);
        }
    }

    /// Lets it speak: greedy, with the probabilities of each token. Returns the tokens and their log-probabilities as text.
    pub fn speak(&self, tokens: u32) -> Result<String, CompareError> {
        self.complete(PROMPT, tokens)
    }

    fn complete(&self, prompt: &str, tokens: u32) -> Result<String, CompareError> {
        let body = json!({
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "seed": 1, "n_probs": 3, "cache_prompt": false,
        });
        let answer = self
            .agent
            .post(format!("{}/completion", self.url))
            .send_json(&body)
            .map_err(|error| self.no_answer(error.to_string()))?;
        let answer: Value = answer
            .into_body()
            .read_json()
            .map_err(|error| self.no_answer(error.to_string()))?;
        match &answer["completion_probabilities"] {
            Value::Array(tokens) if !tokens.is_empty() => {
                Ok(answer["completion_probabilities"].to_string())
            }
            _ => Err(self.no_answer(format!("no tokens: {answer}"))),
        }
    }

    /// What it says of its load.
    pub fn load(&self) -> Option<Load> {
        let answer = self.agent.get(format!("{}/props", self.url)).call().ok()?;
        let props: Value = answer.into_body().read_json().ok()?;
        serde_json::from_value(props["hugepages"]["load"].clone()).ok()
    }

    /// The first token, and what it took to get there. `residue` is asked right after it.
    pub fn measure(
        mut self,
        residue: impl FnOnce() -> Result<u64, CompareError>,
    ) -> Result<Sample, CompareError> {
        let seconds_to_health = self.ready()?;
        self.complete(SHORT_PROMPT, 1)?;
        let seconds_to_token = self.began.elapsed().as_secs_f64();
        let counts =
            Counts::read(self.child.id()).map_err(|error| self.no_answer(error.to_string()))?;
        let memory = self.memory.take().map(Watch::stop).unwrap_or_default();
        let sample = Sample {
            side: self.side.name.clone(),
            seconds_to_health,
            seconds_to_token,
            user_seconds: counts.user_seconds,
            system_seconds: counts.system_seconds,
            minor_faults: counts.minor_faults,
            major_faults: counts.major_faults,
            peak_own_bytes: memory.own,
            peak_file_bytes: memory.file,
            residue_bytes: residue()?,
            load: self.load(),
        };
        Ok(sample)
    }

    fn no_answer(&self, reason: String) -> CompareError {
        CompareError::NoAnswer {
            name: self.side.name.clone(),
            reason,
        }
    }

    /// Why it ended: the cause and the hint in its log, or the last thing it said.
    fn last_words(&mut self) -> (String, Option<String>) {
        let mut text = Vec::new();
        // What cannot be read is not said.
        let _ = self
            .log
            .rewind()
            .and_then(|()| self.log.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        cause_and_hint(&text)
            .unwrap_or_else(|| (text.lines().last().unwrap_or_default().to_owned(), None))
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // It ends as a user ends it; what does not is killed.
        let _ = kill_process(pid, Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(10) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(TICK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status_name(status: ExitStatus) -> String {
    status.code().map_or_else(
        || format!("signal {}", status.signal().unwrap_or_default()),
        |code| format!("exit code {code}"),
    )
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

struct Counts {
    user_seconds: f64,
    system_seconds: f64,
    minor_faults: u64,
    major_faults: u64,
}

impl Counts {
    fn read(pid: u32) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
            .ok_or_else(|| io::Error::other("/proc/PID/stat"))
    }

    /// proc(5): the name in brackets may hold anything, so fields count from behind its end: 3 is the state.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            minor_faults: field(10)?,
            major_faults: field(12)?,
            user_seconds: field(14)? as f64 / ticks,
            system_seconds: field(15)? as f64 / ticks,
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    own: u64,
    file: u64,
}

/// Looks at the memory of a process until it is stopped.
struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new([const { AtomicU64::new(0) }; 2]);
        let (stopped, peaks) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                    return;
                };
                let now = Peak::parse(&status);
                peaks[0].fetch_max(now.own, Ordering::Relaxed);
                peaks[1].fetch_max(now.file, Ordering::Relaxed);
                thread::sleep(4 * TICK);
            }
        });
        Self { stop, peak, thread }
    }

    fn stop(self) -> Peak {
        self.stop.store(true, Ordering::Relaxed);
        // It panics nowhere; if it did, the peak so far would be right.
        let _ = self.thread.join();
        Peak {
            own: self.peak[0].load(Ordering::Relaxed),
            file: self.peak[1].load(Ordering::Relaxed),
        }
    }
}

impl Peak {
    fn parse(status: &str) -> Self {
        let of = |name| kernel_files::kib_field(status, name).unwrap_or(0);
        Self {
            own: of("RssAnon") + of("HugetlbPages"),
            file: of("RssFile"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 11 0 12 0 300 40 0 0 20 0 1 0 0";
        let counts = Counts::parse(stat).unwrap();
        assert_eq!((counts.minor_faults, counts.major_faults), (11, 12));
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert!((counts.user_seconds * ticks - 300.0).abs() < 1e-9);
        assert!((counts.system_seconds * ticks - 40.0).abs() < 1e-9);
    }

    #[test]
    fn own_memory_is_what_nobody_can_take_away() {
        let peak = Peak::parse(
            "RssAnon:\t 100 kB\nRssFile:\t7 kB\nRssShmem: 3 kB\nHugetlbPages:\t 2048 kB\n",
        );
        assert_eq!((peak.own, peak.file), (2148 * 1024, 7 * 1024));
    }

    #[test]
    fn a_server_that_ends_at_once_is_said_to_have_ended() {
        let side = Side {
            name: "false".into(),
            program: "/bin/false".into(),
            model: "/none".into(),
            args: Vec::new(),
        };
        let flag = AtomicBool::new(false);
        let mut server = Server::start(&side, &flag).unwrap();
        let error = server.ready().unwrap_err();
        assert!(
            matches!(&error, CompareError::Ended { status, .. } if status == "exit code 1"),
            "{error}"
        );
    }
}
