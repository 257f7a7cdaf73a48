//! `hugepages compare` as a user runs it, on models so small that nothing is to be learned from their times.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::pool::Pool;
use crate::support::server::Launch;
use crate::support::{models, or_skip, plan, programs, wait_for};

fn tool(model: &Path, baseline: &Path, cases: &str) -> Command {
    let mut command = Command::new(programs::hugepages());
    command
        .args([
            "compare", "--format", "json", "--pairs", "2", "--cases", cases, "--model",
        ])
        .arg(model)
        .arg("--baseline")
        .arg(baseline)
        .args(["--", "--threads", "2"]);
    command
}

/// Pages for what `compare` starts.
fn pages(model: &Path) -> u64 {
    let launch = Launch::ours()
        .repacked_model(model)
        .args(["--ctx-size", "4096"]);
    plan::pages_by_kind(&plan::of(&launch)).values().sum()
}

/// A baseline that is a script.
fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("baseline");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a temporary folder can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

fn runs<'a>(report: &'a Value, case: &str, side: usize) -> Vec<&'a Value> {
    let cases = report["cases"].as_array().expect("a list").iter();
    let case = cases.clone().find(|result| result["case"]["name"] == case);
    let pairs = case.unwrap_or_else(|| panic!("no {case:?}"))["pairs"]
        .as_array()
        .expect("a list");
    pairs.iter().map(|pair| &pair[side]).collect()
}

#[test]
fn a_cold_start_on_huge_pages_leaves_the_page_cache_alone_and_says_so() {
    let model = models::copy_to(
        Path::new(env!("CARGO_TARGET_TMPDIR")),
        &models::demo("100M", "Q4_K"),
    );
    let stock = or_skip!(programs::stock("llama-server"));
    let need = pages(&model);
    let pool = or_skip!(Pool::with(need));
    let output = tool(&model, &stock, "cold,off")
        .output()
        .expect("the tool can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], 1);
    let size = fs::metadata(&model).expect("it is there").len();
    let number = |sample: &Value, name: &str| {
        sample[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {sample}"))
    };
    for sample in runs(&report, "cold", 0) {
        assert!(
            number(sample, "residue_bytes") > 0.9 * size as f64,
            "{sample}"
        );
        assert!(sample["load"].is_null(), "{sample}");
    }
    for sample in runs(&report, "cold", 1) {
        assert!(
            number(sample, "residue_bytes") < 0.01 * size as f64 + 2e6,
            "{sample}"
        );
        assert!(
            number(sample, "peak_own_bytes") > (need * 2) as f64 * 1e6,
            "{sample}"
        );
        assert!(
            number(&sample["load"], "bytes_direct") > 0.9 * size as f64,
            "{sample}"
        );
    }
    for sample in runs(&report, "off", 0)
        .into_iter()
        .chain(runs(&report, "off", 1))
    {
        assert!(
            number(sample, "seconds_to_token") >= number(sample, "seconds_to_health"),
            "{sample}"
        );
        assert!(
            number(sample, "minor_faults") > 1000.0 && number(sample, "user_seconds") > 0.0,
            "{sample}"
        );
    }
    pool.assert_all_back();
    fs::remove_file(model).expect("it is ours");
}

#[test]
fn a_baseline_that_says_something_else_is_5_before_anything_is_timed() {
    let (model, other) = (
        models::demo("20M", "Q8_0"),
        models::demo_with("20M", "Q8_0", &["--seed", "7"]),
    );
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let server = programs::server();
    let baseline = script(
        dir.path(),
        &format!(
            "exec '{}' \"$@\" --model '{}'",
            server.display(),
            other.display()
        ),
    );
    let output = tool(&model, &baseline, "off")
        .output()
        .expect("the tool can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("do not give the same tokens") && !said.contains("pair 1"),
        "{said}"
    );
}

#[test]
fn a_baseline_that_ends_is_told_with_its_words() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let baseline = script(dir.path(), "echo 'error: out of order' >&2; exit 7");
    let output = tool(&model, &baseline, "off")
        .output()
        .expect("the tool can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("`stock` ended before it was ready (exit code 7): out of order"),
        "{said}"
    );
}

#[test]
fn without_pages_it_says_what_the_server_says() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(0));
    let output = tool(&model, &programs::server(), "warm")
        .output()
        .expect("the tool can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the model needs ") && said.contains("\nhint: sysctl vm.nr_hugepages="),
        "{said}"
    );
    pool.assert_all_back();
}

#[test]
fn an_interrupt_leaves_no_server_and_no_page() {
    let model = models::demo("100M", "Q8_0");
    let need = pages(&model);
    let pool = or_skip!(Pool::with(need));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let pids = dir.path().join("pids");
    // Each start leaves its number.
    let server = programs::server();
    let baseline = script(
        dir.path(),
        &format!(
            "echo $$ >> '{}'; exec '{}' \"$@\"",
            pids.display(),
            server.display()
        ),
    );
    let started = || {
        fs::read_to_string(&pids)
            .unwrap_or_default()
            .lines()
            .count()
    };
    for starts in [1, 2] {
        let _ = fs::remove_file(&pids);
        let mut child = tool(&model, &baseline, "warm")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the tool can be started");
        assert!(
            wait_for(Duration::from_secs(120), || started() >= starts),
            "it never started {starts} servers"
        );
        kill_process(Pid::from_child(&child), Signal::INT).expect("it is a child of ours");
        assert_eq!(child.wait().expect("it is ours").code(), Some(130));
        for pid in fs::read_to_string(&pids).expect("written").lines() {
            assert!(!Path::new("/proc").join(pid).exists(), "{pid} still runs");
        }
        pool.assert_all_back();
    }
}
