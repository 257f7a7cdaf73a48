//! One run of pytest against one server, and the outcome of each test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use super::Server;
use super::bench::Bench;
use crate::group::Group;
use crate::hint::Hint as _;

/// Five times as long as the slowest of upstream's tests.
const TEST_SECONDS: u32 = 90;
/// Shorter, so that in a test that hangs, the request ends first.
const REQUEST_SECONDS: u32 = 75;

/// The outcome of a test. `plugin.py` writes the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
    XFailed,
    XPassed,
    /// The set-up or clean-up of the test failed.
    Error,
}

impl Outcome {
    pub const ALL: [Self; 6] = [
        Self::Passed,
        Self::Failed,
        Self::Skipped,
        Self::XFailed,
        Self::XPassed,
        Self::Error,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::XFailed => "xfailed",
            Self::XPassed => "xpassed",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Found {
    pub outcome: Outcome,
    /// The reason, and the place in the test.
    pub said: String,
    /// From the server's log: the model memory of all loads during the test, and the part on huge pages.
    pub all_mib: f64,
    pub huge_mib: f64,
}

#[derive(Debug)]
pub struct Run {
    pub server: Server,
    pub outcomes: BTreeMap<String, Found>,
    pub seconds: f64,
}

impl Run {
    pub fn count(&self, outcome: Outcome) -> usize {
        self.outcomes
            .values()
            .filter(|found| found.outcome == outcome)
            .count()
    }

    /// The share of the model memory on huge pages, from 0 to 1; `None` if the server reported nothing.
    pub fn huge_share(&self) -> Option<f64> {
        let all: f64 = self.outcomes.values().map(|found| found.all_mib).sum();
        let huge: f64 = self.outcomes.values().map(|found| found.huge_mib).sum();
        (all > 0.0).then(|| huge / all)
    }
}

/// One line of the plugin's file.
#[derive(Deserialize)]
struct Line {
    test: String,
    #[serde(flatten)]
    found: Found,
}

impl Bench {
    pub fn run(
        &self,
        server: Server,
        program: &Path,
        tests: &[String],
        interrupted: &AtomicBool,
    ) -> Result<Run> {
        let start = Instant::now();
        let directory = self.lay_out(server)?;
        let folder = self.folder(server);
        let (outcomes, log) = (folder.join("outcomes.jsonl"), folder.join("pytest.log"));
        let log_file =
            File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let mut pytest = Command::new(self.python());
        for (name, _) in std::env::vars_os() {
            if is_heeded(&name.to_string_lossy()) {
                pytest.env_remove(name);
            }
        }
        pytest
            .args([
                "-m",
                "pytest",
                "-p",
                "plugin",
                "-p",
                "no:cacheprovider",
                "-q",
                "--tb=short",
            ])
            .args(["-m", "not slow", "--timeout", &TEST_SECONDS.to_string()])
            .args(tests)
            .current_dir(directory)
            .env("PYTHONPATH", self.scripts())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("UPSTREAM_TESTS_HUB", self.hub())
            .env("UPSTREAM_TESTS_OUTCOMES", &outcomes)
            .env(
                "UPSTREAM_TESTS_REQUEST_SECONDS",
                REQUEST_SECONDS.to_string(),
            )
            .env("LLAMA_SERVER_BIN_PATH", program)
            .env("LLAMA_CACHE", self.cache(server))
            .env("PORT", free_port(server)?.to_string())
            // On a busy machine, spinning threads take minutes.
            .env("OMP_WAIT_POLICY", "passive")
            .envs(server.options().iter().copied())
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        // pytest's servers are in its group.
        let code = Group::spawn(&mut pytest)?.wait(interrupted)?;
        match code {
            // All tests passed, or some failed.
            0 | 1 => {}
            5 => bail!("no test matches {}", tests.join(" ")),
            _ => {
                return Err(anyhow!("pytest ended with exit code {code}"))
                    .hint(&format!("its output: {}", log.display()));
            }
        }
        Ok(Run {
            server,
            outcomes: read(&outcomes)?,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// Whether a variable would change the tests or the servers.
fn is_heeded(name: &str) -> bool {
    let prefixes = ["LLAMA_", "GGML_", "HF_", "PYTEST_", "PYTHON"];
    let names = [
        "DEBUG",
        "DEBUG_EXTERNAL",
        "N_GPU_LAYERS",
        "SLOW_TESTS",
        "MODEL_ENDPOINT",
        "http_proxy",
        "HTTP_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || names.contains(&name)
}

/// A port below the kernel's range for clients, because a client could take a port of this range between two tests.
fn free_port(server: Server) -> Result<u16> {
    let first = 18_080 + 100 * server as u16;
    (first..first + 100)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .context("no free port")
}

fn read(path: &Path) -> Result<BTreeMap<String, Found>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    text.lines()
        .map(|line| {
            let Line { test, found } = serde_json::from_str(line)?;
            Ok((test, found))
        })
        .collect()
}
