//! `hugepages demo-model` as a user runs it.

use crate::support::programs;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};

fn tool(args: &[&str]) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(programs::hugepages());
    command.args(args);
    command
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn prints_what_came_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let out = path.to_str().unwrap();
    let result = tool(&["demo-model", out, "--size", "2M", "--type", "q4_k"])
        .assert()
        .success();
    let bytes = fs::metadata(&path).unwrap().len();
    result.stdout(
        starts_with(format!("{out}: {bytes} bytes ("))
            .and(contains("llama, Q4_K, "))
            .and(contains(" parameters")),
    );
}

#[test]
fn shards_have_upstreams_names() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    tool(&[
        "demo-model",
        out.to_str().unwrap(),
        "--size",
        "2M",
        "--split",
        "3",
    ])
    .assert()
    .success();
    assert_eq!(
        names(dir.path()),
        [
            "x-00001-of-00003.gguf",
            "x-00002-of-00003.gguf",
            "x-00003-of-00003.gguf"
        ]
    );
}

#[test]
fn an_existing_file_ends_in_an_error_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, "precious").unwrap();
    let out = path.to_str().unwrap();
    let expected = format!("error: `{out}` exists\nhint: --force replaces it\n");
    tool(&["demo-model", out, "--size", "1M"])
        .assert()
        .code(1)
        .stdout("")
        .stderr(expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    tool(&["demo-model", out, "--size", "1M", "--force"])
        .assert()
        .success();
}

#[test]
fn a_full_file_system_is_known_at_once() {
    // /dev/shm is memory, so it never has a terabyte free.
    let path = Path::new("/dev/shm/hugepages-demo-model-test.gguf");
    tool(&["demo-model", path.to_str().unwrap(), "--size", "1T"])
        .assert()
        .code(1)
        .stderr(
            starts_with("error: too little space in `/dev/shm`: ")
                .and(contains("hint: use a smaller --size")),
        );
    assert!(!path.exists());
}

#[test]
fn a_missing_directory_is_named() {
    tool(&["demo-model", "/nonexistent/x.gguf", "--size", "1M"])
        .assert()
        .code(1)
        .stderr(
            contains("`/nonexistent`: No such file or directory")
                .and(contains("hint: create the directory")),
        );
}

#[test]
fn nonsense_arguments_are_explained_with_exit_code_2() {
    for (size, cause) in [
        ("-1", "cannot be negative"),
        ("1e99", "unknown unit `e99`"),
        ("big", "start with a number"),
        ("", "start with a number"),
    ] {
        tool(&["demo-model", "x", "--size", size])
            .assert()
            .code(2)
            .stderr(contains(cause));
    }
    tool(&["demo-model", "x", "--type", "Q9_9"])
        .assert()
        .code(2)
        .stderr(contains("Q8_0"));
    tool(&["demo-model", "x", "--split", "0"]).assert().code(2);
    tool(&["demo-model", "x", "--experts-used", "2"])
        .assert()
        .code(2);
    tool(&["demo-model"]).assert().code(2);
}

#[test]
fn help_shows_the_exit_codes() {
    tool(&["--help"])
        .assert()
        .success()
        .stdout(contains("Exit codes:").and(contains("130")));
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        tool(&["completions", shell])
            .assert()
            .success()
            .stdout(contains("demo-model"));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let mut child = Command::new(programs::hugepages())
        .args(["demo-model", out.to_str().unwrap(), "--size", "2M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn signals_leave_nothing_behind() {
    for signal in ["INT", "TERM", "HUP"] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let out = dir.path().join("x.gguf");
        // The tool needs a second or more for these files, and the nice value lets the test send its signal before.
        let mut child = Command::new("nice")
            .args(["-n", "19"])
            .arg(programs::hugepages())
            .args(["demo-model", out.to_str().unwrap()])
            .args(["--size", "2G", "--split", "4"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while names(dir.path()).is_empty() {
            if let Some(status) = child.try_wait().unwrap() {
                let output = child.wait_with_output().unwrap();
                panic!("the tool wrote nothing and ended with {status}: {output:?}");
            }
            assert!(Instant::now() < deadline, "the tool writes nothing");
            sleep(Duration::from_millis(5));
        }
        assert!(
            Command::new("kill")
                .args(["-s", signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert_eq!(output.stderr, b"error: cancelled\n");
        assert_eq!(names(dir.path()), [""; 0], "after SIG{signal}");
    }
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = dir.path().join("x.gguf");
    let mut child = Command::new(programs::hugepages())
        .args(["demo-model", out.to_str().unwrap(), "--size", "1G"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak_kb = 0;
    while child.try_wait().unwrap().is_none() {
        // An ended process that nobody waited for has no memory, so the last value before its end is the peak.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now: Option<u64> = line.and_then(|kb| kb.trim().trim_end_matches(" kB").parse().ok());
        peak_kb = peak_kb.max(now.unwrap_or(0));
        sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    assert!(fs::metadata(&out).unwrap().len() > 1_000_000_000);
    assert!((1000..200_000).contains(&peak_kb), "peak of {peak_kb} kB");
    println!("peak of {peak_kb} kB for 1 GiB");
}
