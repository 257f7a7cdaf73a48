//! `hugepages serve` adds the pages that a model lacks, and removes them at the end of the server, whatever the cause.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::support::pool::{Counts, Pool};
use crate::support::server::{Launch, Server};
use crate::support::store::Mounted;
use crate::support::{is_root, models, need, or_skip, programs, smaps, wait_for};

const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);

/// The tool with a journal of its own, because the test holds the pool.
struct Tool {
    state: TempDir,
}

impl Tool {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().expect("a temporary folder can be made"),
        }
    }

    fn serve(&self, options: &[&str], model: &Path) -> Launch {
        let state = self.state.path().to_str().expect("UTF-8");
        Launch::served(options)
            .env("LLAMA_HUGEPAGES_STATE", state)
            // The command would inherit signals that this process ignores, as under `nohup`, so `env` resets them.
            .wrapped(["env", "--default-signal=INT,TERM,HUP"])
            .model(model)
    }
}

/// The server process that a `hugepages serve` runs.
fn child_of(served: &Server) -> u32 {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (head, tail) = stat.rsplit_once(')').unwrap_or_default();
        let parent = tail.split_whitespace().nth(1);
        head.ends_with("(llama-server") && parent == Some(&served.pid().to_string())
    };
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children: Vec<u32> = pids.filter(is_child).collect();
    assert_eq!(children.len(), 1, "one server\n{}", served.log());
    children[0]
}

fn pages_of(model: &Path) -> u64 {
    need::of(&Launch::ours().model(model))
}

fn total() -> u64 {
    Counts::read().total
}

fn assert_gone(pid: u32, log: &str) {
    let is_gone = || !Path::new(&format!("/proc/{pid}")).exists();
    assert!(wait_for(PATIENCE, is_gone), "{log}");
}

fn assert_returned(before: u64, log: &str) {
    let is_back = || total() == before;
    assert!(
        wait_for(PATIENCE, is_back),
        "{} pages, before {before}\n{log}",
        total()
    );
}

#[test]
fn exactly_the_missing_pages_join_the_pool_and_leave_it_with_the_server() {
    let model = models::demo("20M", "Q8_0");
    let need = pages_of(&model);
    let pool = or_skip!(Pool::with(3));
    let before = pool.counts.total;
    let tool = Tool::new();
    for (signal, code) in [(Signal::INT, 0), (Signal::TERM, 0), (Signal::HUP, 0)] {
        let served = tool.serve(&[], &model).start();
        assert_eq!(total(), before + need - 3, "{}", served.log());
        let backed = smaps::hugetlb_bytes(child_of(&served));
        assert!(backed > 0, "{}", served.log());
        served.complete("Hello", &json!({ "temperature": 0 }));
        let ended = served.stop(signal);
        assert_eq!(ended.status.code(), Some(code), "{}", ended.log);
        assert_returned(before, &ended.log);
    }
}

#[test]
fn a_kill_takes_the_server_along_and_returns_the_pages() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let tool = Tool::new();
    let served = tool.serve(&[], &model).start();
    let pid = child_of(&served);
    let ended = served.stop(Signal::KILL);
    assert_gone(pid, &ended.log);
    assert_returned(before, &ended.log);
}

#[test]
fn the_end_of_the_server_is_the_end_of_the_command_with_its_exit_code() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let tool = Tool::new();
    let served = tool.serve(&[], &model).start();
    let process = Pid::from_raw(child_of(&served).cast_signed()).expect("not 0");
    kill_process(process, Signal::KILL).expect("the process runs");
    let ended = served.wait();
    assert_eq!(ended.status.code(), Some(128 + 9), "{}", ended.log);
    assert_returned(before, &ended.log);
}

#[test]
fn two_at_once_both_serve_and_the_pool_is_as_before() {
    let model = models::demo("20M", "Q8_0");
    let need = pages_of(&model);
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let tool = Tool::new();
    let mut both = [(), ()].map(|()| tool.serve(&[], &model).spawn());
    for served in &mut both {
        served.wait_until_ready();
        let backed = smaps::hugetlb_bytes(child_of(served));
        assert!(backed > 0, "{}", served.log());
    }
    assert!(total() >= before + 2 * need);
    let logs = both.map(|served| served.stop(Signal::INT).log).concat();
    assert_returned(before, &logs);
}

#[test]
fn under_sudo_the_server_runs_as_the_user_who_called_it() {
    if !is_root() {
        return crate::support::skip("only root can change the pool as sudo does");
    }
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let id = NOBODY.to_string();
    let tool = Tool::new();
    let served = tool
        .serve(&[], &model)
        .env("SUDO_UID", &id)
        .env("SUDO_GID", &id)
        .start();
    let pid = child_of(&served);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let ids = line.expect("a line").split_whitespace().map(str::to_owned);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(of("Uid:"), [id.as_str(); 4]);
    assert_eq!(of("Gid:"), [id.as_str(); 4]);
    assert!(of("Groups:").iter().all(|group| *group == id), "{status}");
    assert!(total() > before);
    // The server runs as another user, and must still end with the command.
    let ended = served.stop(Signal::KILL);
    assert_gone(pid, &ended.log);
    assert_returned(before, &ended.log);
}

#[test]
fn a_user_without_rights_gets_the_command_and_a_server_on_the_free_pages() {
    if !is_root() {
        return crate::support::skip("only root can become another user");
    }
    let model = models::demo("20M", "Q8_0");
    let need = pages_of(&model);
    let mut pool = or_skip!(Pool::with(0));
    for free in [0, 5, need] {
        pool.set(free);
        let before = total();
        let tool = Tool::new();
        let served = tool.serve(&[], &model).under_uid(NOBODY).start();
        let log = served.log();
        let hint = format!("sudo hugepages pool reserve {need}");
        assert_eq!(log.contains(&hint), free < need, "{free} free\n{log}");
        assert_eq!(total(), before, "{log}");
        served.complete("Hello", &json!({ "temperature": 0 }));
        let ended = served.stop(Signal::INT);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    }
}

#[test]
fn what_cannot_be_served_is_refused_before_the_pool_is_touched() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;

    let missing = Path::new("/nonexistent/model.gguf");
    let tool = Tool::new();
    let ended = tool.serve(&[], missing).run();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(
        ended.log.contains("/nonexistent/model.gguf"),
        "{}",
        ended.log
    );

    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("the listener is bound").port();
    let ended = tool.serve(&[], &model).run_on(port);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    let hint = format!("--port {}", port + 1);
    assert!(ended.log.contains("in use"), "{}", ended.log);
    assert!(ended.log.contains(&hint), "{}", ended.log);

    let launch = Launch::served(&[]).args(["--ctx-size", "512"]);
    let ended = launch.run();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("name no model"), "{}", ended.log);

    let ended = tool.serve(&[], &model).args(["--no-hugepages"]).run();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("--no-hugepages"), "{}", ended.log);
    assert_eq!(total(), before);
}

#[test]
fn with_keep_the_second_start_attaches() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let store = or_skip!(Mounted::with("mode=0755"));
    let tool = Tool::new();
    let serve = || {
        tool.serve(&["--keep"], &model).env(
            "LLAMA_ARG_HUGEPAGE_STORE",
            store.path().to_str().expect("UTF-8"),
        )
    };
    let first = serve().start();
    let answer = first.complete("Hello", &json!({ "temperature": 0 }));
    let ended = first.stop(Signal::INT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    let kept = store.pages();
    assert!(kept > 0, "{}", ended.log);
    assert_returned(before + kept, &ended.log);

    let second = serve().start();
    assert!(
        second.log().contains("resident in the store"),
        "{}",
        second.log()
    );
    let again = second.complete("Hello", &json!({ "temperature": 0 }));
    assert_eq!(again["tokens"], answer["tokens"]);
    let ended = second.stop(Signal::INT);
    assert_returned(before + kept, &ended.log);

    // The pages of the store stay until a user returns them.
    drop(store);
    let restored = Command::new(programs::hugepages())
        .args(["pool", "restore"])
        .env("LLAMA_HUGEPAGES_STATE", tool.state.path())
        .output()
        .expect("the tool can be started");
    let said = String::from_utf8_lossy(&restored.stderr);
    assert!(restored.status.success(), "{said}");
    assert_returned(before, &said);
}

#[test]
fn without_arguments_the_tool_shows_the_state_in_five_lines_and_the_next_command() {
    let pool = or_skip!(Pool::with(7));
    let output = Command::new(programs::hugepages()).output();
    let output = output.expect("the tool can be started");
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 7, "{text}");
    let total = pool.counts.total;
    assert!(
        lines[1].contains(&format!("{total} pages of 2 MiB")),
        "{text}"
    );
    assert!(lines[6].starts_with("next: hugepages "), "{text}");
}
