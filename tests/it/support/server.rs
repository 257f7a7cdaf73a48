//! A server from start to end, with its log.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use hugepages::port::Port;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::seccomp::Filter;
use super::{http, programs, wait_for};

/// A machine that is busy with other tests is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// After this time a log counts as complete, even without its expected last line.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// Makes waiting threads sleep: on a machine that is busy with other tests, spinning threads take CPU time from them. The setting changes
/// no sum.
pub const QUIET_THREADS: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Programs in front of the server: each changes something and then becomes the next.
    wrapper: Vec<OsString>,
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(String, String)>,
    filter: Option<Filter>,
}

impl Launch {
    /// Our server.
    pub fn ours() -> Self {
        Self::of(programs::server())
    }

    /// `hugepages serve` with these options.
    pub fn served(options: &[&str]) -> Self {
        Self::through(programs::hugepages(), ["serve"].iter().chain(options))
    }

    /// A program that starts a server, and takes the arguments of the server after these words.
    pub fn through<A: AsRef<OsStr>>(program: PathBuf, words: impl IntoIterator<Item = A>) -> Self {
        let mut launch = Self::of(program);
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        launch.args.splice(0..0, words);
        launch
    }

    /// Upstream's server. An error is the reason to skip the test.
    pub fn stock() -> Result<Self, String> {
        Ok(Self::of(programs::stock("llama-server")?))
    }

    /// An upstream program with our patches that takes the arguments of a server. An error is the reason to skip the test.
    pub fn tool(name: &str) -> Result<Self, String> {
        Ok(Self::of(programs::patched(name)?))
    }

    /// A server that is built elsewhere.
    pub fn of(program: PathBuf) -> Self {
        let launch = Self {
            wrapper: Vec::new(),
            program,
            args: Vec::new(),
            environment: Vec::new(),
            filter: None,
        };
        // One slot and a short context, because these tests check weights. The number of threads is fixed, because it affects rounding.
        launch.args([
            "--host",
            "127.0.0.1",
            "--threads",
            "2",
            "--parallel",
            "1",
            "--ctx-size",
            "512",
        ])
    }

    /// The model with every weight mapped. Weights that the server repacks for a CPU leave the file image.
    pub fn model(self, path: &Path) -> Self {
        self.repacked_model(path).args(["--no-repack"])
    }

    /// The model with the server's default, which may repack weights.
    pub fn repacked_model(self, path: &Path) -> Self {
        self.args([OsStr::new("--model"), path.as_os_str()])
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Without the short context: the server chooses it.
    pub fn without_context(mut self) -> Self {
        let at = self.args.iter().position(|arg| arg == "--ctx-size");
        let at = at.expect("every launch has one");
        self.args.drain(at..at + 2);
        self
    }

    pub fn hugepages(self, policy: &str) -> Self {
        self.args(["--hugepages", "--hugepage-policy", policy])
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Refuses system calls, also to the wrappers.
    pub fn filtered(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    pub fn wrapped<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper
            .extend(wrapper.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs the server with the rights of another user.
    pub fn under_uid(self, uid: u32) -> Self {
        let id = uid.to_string();
        self.wrapped(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
    }

    pub fn in_cgroup(self, dir: &Path) -> Self {
        self.wrapped([
            "sh",
            "-c",
            r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#,
            "sh",
        ])
        .wrapped([dir])
    }

    /// Runs the server under strace, which writes to a file. strace has a process group of its own, so the child is the server, and a kill of
    /// the server's group leaves strace the time to write the end.
    pub fn traced(self, calls: &str, output: &Path) -> Self {
        self.wrapped([
            "strace",
            "-DD",
            "-f",
            "-q",
            "-y",
            "-e",
            &format!("trace={calls}"),
            "-o",
        ])
        .wrapped([output])
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn arguments(&self) -> &[OsString] {
        &self.args
    }

    /// Starts the server without waiting for it.
    pub fn spawn(self) -> Server {
        let port = Port::reserve().expect("a port is free");
        let mut server = self.spawn_on(port.number);
        server.reserved = Some(port);
        server
    }

    /// Runs the server on a given port until it ends by itself.
    pub fn run_on(self, port: u16) -> Ended {
        self.spawn_on(port).wait()
    }

    fn spawn_on(self, port: u16) -> Server {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let log = dir.path().join("log");
        let mut line = self.wrapper;
        // A killed test takes its servers along, even one that it has just started.
        line.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
        let is_parent_alive = r#"[ $PPID = "$1" ] && shift && exec "$@""#;
        line.extend(["sh", "-c", is_parent_alive, "sh"].map(OsString::from));
        line.push(process::id().to_string().into());
        line.push(self.program.into());
        line.extend(self.args);
        line.extend(["--port".into(), port.to_string().into()]);

        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .process_group(0)
            .stdin(Stdio::null());
        for (name, _) in env::vars_os() {
            // Variables of the person who runs the tests must not affect them.
            if name.to_string_lossy().starts_with("LLAMA_ARG_") {
                command.env_remove(name);
            }
        }
        command
            .env(QUIET_THREADS.0, QUIET_THREADS.1)
            .envs(self.environment);
        if let Some(filter) = &self.filter {
            filter.apply(&mut command);
        }
        let file = fs::File::create(&log).expect("just made");
        command
            .stdout(file.try_clone().expect("a file"))
            .stderr(file);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {line:?}: {error}"));
        Server {
            child,
            port,
            reserved: None,
            dir,
            status: None,
        }
    }

    /// Starts the server, and waits until it is ready.
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        server.wait_until_ready();
        server
    }

    /// Runs the server until it ends by itself.
    pub fn run(self) -> Ended {
        self.spawn().wait()
    }
}

/// The status and the log of an ended server.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub log: String,
}

impl Ended {
    /// Asserts that the server ended by itself, with an error.
    pub fn assert_clean_failure(&self) {
        assert_eq!(self.status.signal(), None, "died of a signal\n{}", self.log);
        assert_ne!(
            self.status.code(),
            Some(0),
            "should have failed\n{}",
            self.log
        );
    }

    /// The only line of the log that contains a text.
    pub fn line_with(&self, text: &str) -> &str {
        let lines: Vec<_> = self
            .log
            .lines()
            .filter(|line| line.contains(text))
            .collect();
        match lines[..] {
            [line] => line,
            [] => panic!("the log has no `{text}`\n{}", self.log),
            _ => panic!("the log has `{text}` {} times\n{}", lines.len(), self.log),
        }
    }
}

pub struct Server {
    child: Child,
    pub port: u16,
    reserved: Option<Port>,
    dir: TempDir,
    status: Option<ExitStatus>,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap_or_default())
            .into_owned()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn is_ready(&self) -> bool {
        http::try_get(&self.url("/health")).is_some_and(|(status, _)| status == 200)
    }

    /// Whether the server has freed its model until the next request (`--sleep-idle-seconds`).
    pub fn is_asleep(&self) -> bool {
        http::get_json(&self.url("/props"))["is_sleeping"] == true
    }

    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .expect("the process is a child of ours");
        }
        self.status.is_some()
    }

    pub fn wait_until_ready(&mut self) {
        assert!(
            self.is_ready_before_it_ends(),
            "the server is not ready: {}\n{}",
            self.how_it_ended(),
            self.log()
        );
        // Another thread writes the log. The line about the address is the last one.
        wait_for(LOG_PATIENCE, || self.log().contains("listening on "));
    }

    pub fn is_ready_before_it_ends(&mut self) -> bool {
        wait_for(PATIENCE, || self.has_ended() || self.is_ready()) && !self.has_ended()
    }

    pub fn how_it_ended(&self) -> String {
        self.status.map_or_else(
            || "the server is still alive".to_owned(),
            |status| status.to_string(),
        )
    }

    /// Waits until the server ends by itself.
    pub fn wait(mut self) -> Ended {
        let ended = wait_for(PATIENCE, || self.has_ended());
        assert!(ended, "the server should have ended\n{}", self.log());
        self.ended()
    }

    /// Sends a signal and waits for the end.
    pub fn stop(mut self, signal: Signal) -> Ended {
        if self.is_ready() {
            // Upstream's server answers /health just before its main loop runs, and ignores a signal in between. Only the main loop answers
            // /slots.
            http::try_get(&self.url("/slots"));
        }
        self.signal(signal);
        assert!(
            wait_for(PATIENCE, || self.has_ended()),
            "{signal:?} does not end the server\n{}",
            self.log()
        );
        self.ended()
    }

    fn ended(&mut self) -> Ended {
        Ended {
            status: self.status.expect("the server has ended"),
            log: self.log(),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.process(), signal).expect("the process is a child of ours");
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The answer to a prompt, with every field that depends on the logits, and none that depends on time.
    pub fn complete(&self, prompt: &str, options: &Value) -> Value {
        let mut body = json!({
            "prompt": prompt, "n_predict": 24, "n_probs": 10, "return_tokens": true, "cache_prompt": false,
            // Random weights end an answer at random.
            "ignore_eos": true,
        });
        let body_fields = body.as_object_mut().expect("an object");
        body_fields.extend(options.as_object().expect("an object").clone());
        let answer = http::post_json(&self.url("/completion"), &body);
        json!({
            "content": answer["content"], "tokens": answer["tokens"],
            "probabilities": answer["completion_probabilities"],
        })
    }

    /// Asserts that the server answers.
    pub fn assert_answers(&self) {
        let answer = self.complete(
            "Once upon a time",
            &json!({ "temperature": 0, "n_predict": 4 }),
        );
        assert_eq!(
            answer["tokens"].as_array().map(Vec::len),
            Some(4),
            "{answer}"
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Kills the whole group, because a router has children.
        let _ = kill_process_group(self.process(), Signal::KILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stdout(),
                "--- log of the server on port {}\n{}",
                self.port,
                self.log()
            );
        }
    }
}
