//! The tool reports every end of a comparison or of one of its servers, and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Tool, case, script, script_before_ours, told};
use crate::support::pool::Pool;
use crate::support::{is_running, models, or_skip, programs, wait_for};

#[test]
fn a_baseline_that_ends_is_told_with_its_words_and_the_other_cases_go_on() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let first = dir.path().join("first");
    let baseline = script_before_ours(
        dir.path(),
        &format!(
            "[ -e '{0}' ] || {{ : > '{0}'; echo 'error: out of order' >&2; exit 7; }}",
            first.display()
        ),
    );
    let ended = Tool::new(&baseline, "off,same")
        .model(&model)
        .with(&["--speed-tokens", "0"])
        .output();
    ended.assert_code(1);
    let report = ended.report();
    let reason = "`stock` ended before it was ready (exit code 7): out of order";
    assert_eq!(told(&report, "failed", "off"), reason);
    assert!(ended.said().contains(reason), "{}", ended.said());
    case(&report, "same");
}

#[test]
fn a_baseline_that_hangs_is_told_once_and_is_not_left_behind() {
    let model = models::demo("20M", "Q8_0");
    let started = Started::new();
    let baseline = script(started.path(), &started.then("exec sleep 1000"));
    let ended = Tool::new(&baseline, "off,none,same")
        .model(&model)
        .with(&["--patience", "1"])
        .output();
    ended.assert_code(1);
    let report = ended.report();
    let reason = told(&report, "failed", "off");
    assert_eq!(reason, "`stock` was not ready after 1 s");
    for name in ["none", "same"] {
        let reason = told(&report, "left_out", name);
        assert_eq!(reason, "`stock` did not become ready in an earlier case");
    }
    assert_eq!(started.pids().len(), 1);
    started.assert_none_runs();
}

#[test]
fn a_baseline_that_dies_while_it_answers_is_told() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    // The kernel kills the server when its CPU time is used up, which only answering does.
    let baseline = script_before_ours(dir.path(), "ulimit -c 0; ulimit -t 2");
    let ended = Tool::new(&baseline, "off")
        .model(&model)
        .with(&["--tokens", "4096"])
        .output();
    ended.assert_code(1);
    let report = ended.report();
    let reason = told(&report, "failed", "off");
    assert!(
        reason.contains("`stock` ended during an answer (signal "),
        "{reason}"
    );
}

#[test]
fn an_interrupt_leaves_no_server_no_page_no_cgroup_and_no_file() {
    let pool = or_skip!(Pool::with(0));
    // The signal arrives in the warm-up, during pairs, between two servers, and under memory pressure.
    for starts in [1, 2, 4, 6] {
        let (started, child) = interrupted(starts, Signal::INT);
        let code = child.1;
        assert_eq!(code, Some(130), "after {starts} starts");
        started.assert_nothing_is_left(child.0);
        pool.assert_all_back();
    }
}

#[test]
fn what_is_killed_leaves_no_server_no_page_no_cgroup_and_no_file() {
    let pool = or_skip!(Pool::with(0));
    for starts in [2, 6] {
        let (started, child) = interrupted(starts, Signal::KILL);
        assert_eq!(child.1, None, "after {starts} starts");
        // The test cannot wait for orphans, so it polls.
        let gone = || {
            started.running().is_empty()
                && cgroups_of(child.0).is_empty()
                && started.left().is_empty()
        };
        assert!(
            wait_for(Duration::from_secs(60), gone),
            "after {starts} starts processes or files remain"
        );
        let back = || total() == pool.counts.total;
        assert!(
            wait_for(Duration::from_secs(60), back),
            "after {starts} starts pages are not back"
        );
        pool.assert_all_back();
    }
}

#[test]
fn pages_that_a_killed_lease_left_are_returned_before_the_pool_is_counted() {
    let model = models::demo("20M", "Q8_0");
    let stock = or_skip!(programs::stock("llama-server"));
    let pool = or_skip!(Pool::with(0));
    let free = pool.counts.total;
    let tool = Tool::new(&stock, "cold").model(&model).with(&["--gate"]);
    let mut lease = Command::new(programs::hugepages())
        .args(["pool", "reserve", "7", "--size", "2M", "--lease"])
        .env("LLAMA_HUGEPAGES_STATE", tool.dir.path().join("state"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool can be started");
    let mut line = String::new();
    let answer = lease.stdout.take().expect("the output is piped");
    BufReader::new(answer)
        .read_line(&mut line)
        .expect("the lease answers");
    assert_eq!((line.trim(), total()), ("ok 7", free + 7));
    lease.kill().expect("the process is our child");
    lease.wait().expect("the process is our child");
    assert_eq!(total(), free + 7);

    let ended = tool.output();
    ended.assert_code(0);
    assert_eq!(total(), free);
    let before = &ended.report()["pools_before"];
    let mut pools = before.as_array().expect("a list").iter();
    let small = pools.find(|pool| pool["page_bytes"] == 2 << 20);
    assert_eq!(
        small.expect("the size of the pool")["total"],
        free,
        "{before}"
    );
}

/// Sends a signal to a comparison after `starts` starts of its baseline. Also returns the comparison's number and exit code.
fn interrupted(starts: usize, signal: Signal) -> (Started, (u32, Option<i32>)) {
    let mut started = Started::new();
    let baseline = script_before_ours(started.path(), &started.then(":"));
    let mut tool = Tool::new(&baseline, "warm,servers,pressure").with(&[
        "--demo",
        "20M,Q8_0",
        "--pairs",
        "2",
        "--speed-tokens",
        "2",
    ]);
    let mut child = tool
        .command
        .env("TMPDIR", started.files())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool can be started");
    let so_often = || started.pids().len() >= starts;
    let in_time = wait_for(Duration::from_secs(120), so_often);
    send(&child, signal);
    let code = child.wait().expect("the child is ours").code();
    assert!(in_time, "the tool never started {starts} servers");
    // The process that returns the pages of a killed tool reads their number from this folder.
    started.state = Some(tool.dir);
    (started, (child.id(), code))
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the process is a child of ours");
}

/// The folder where servers write their process numbers, and the tool its files.
struct Started {
    dir: TempDir,
    state: Option<TempDir>,
}

impl Started {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        fs::create_dir(dir.path().join("files")).expect("the folder is ours");
        Self { dir, state: None }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    fn then(&self, text: &str) -> String {
        let pids = self.path().join("pids");
        format!("echo $$ >> '{}'\n{text}", pids.display())
    }

    fn pids(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("pids")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn running(&self) -> Vec<String> {
        let mut pids = self.pids();
        pids.retain(|pid| is_running(pid));
        pids
    }

    fn assert_none_runs(&self) {
        assert_eq!(self.running(), Vec::<String>::new());
    }

    fn assert_nothing_is_left(&self, tool: u32) {
        self.assert_none_runs();
        assert_eq!(cgroups_of(tool), Vec::<PathBuf>::new());
        assert_eq!(self.left(), Vec::<PathBuf>::new());
    }

    /// Files that the tool left behind.
    fn left(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.files()).expect("the folder is ours");
        files.flatten().map(|entry| entry.path()).collect()
    }
}

/// All pages of the pool, including those that other processes added.
fn total() -> u64 {
    crate::support::pool::Counts::read().total
}

/// The cgroups of a comparison, in any hierarchy.
fn cgroups_of(tool: u32) -> Vec<PathBuf> {
    let name = format!("llama-hugepages-compare-{tool}");
    let mut found = Vec::new();
    let mut dirs = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if entry.file_name().to_str() == Some(&name) {
                found.push(entry.path());
            } else if is_dir && depth < 6 {
                dirs.push((entry.path(), depth + 1));
            }
        }
    }
    found
}
