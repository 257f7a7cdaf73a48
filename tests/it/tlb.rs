//! `hugepages tlb` as a user runs it, on little memory. These tests claim nothing about times.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_match};
use serde_json::Value;

use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::programs::hugepages;
use crate::support::{or_skip, smaps, wait_for};

const SIZE: u64 = 64 << 20;

fn tlb(args: &[&str]) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(hugepages());
    command.arg("tlb").args(args);
    command
}

fn json(args: &[&str]) -> Value {
    let output = tlb(args).args(["--format", "json"]).assert().success();
    serde_json::from_slice(&output.get_output().stdout).expect("JSON on stdout")
}

#[test]
fn each_memory_lies_on_what_it_was_asked_for_and_the_pool_is_as_it_was() {
    let pool = or_skip!(Pool::with(SIZE / PAGE));
    let report = json(&["--size", "64M", "--repeats", "5", "--pages", "base,thp,2M"]);
    pool.assert_all_back();
    assert_eq!(Counts::read().total, pool.counts.total);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["size_bytes"], SIZE);
    let backing = |row: usize| &report["memories"][row]["measured"]["backing"];
    assert_eq!(backing(0)["resident_bytes"], SIZE, "{report}");
    assert_eq!(backing(0)["thp_bytes"], 0);
    assert_eq!(backing(0)["hugetlb_bytes"], 0);
    assert_eq!(backing(2)["kernel_page_bytes"], PAGE);
    assert_eq!(backing(2)["hugetlb_bytes"], SIZE);
    let faults = &report["memories"][2]["measured"]["page_faults"];
    assert_eq!(faults["median"], (SIZE / PAGE) as f64);
    for row in report["memories"].as_array().expect("three rows") {
        for metric in [
            "first_touch",
            "sequential_read",
            "random_read",
            "dependent_read",
        ] {
            let series = &row["measured"][metric];
            assert_eq!(series["rounds"].as_array().map(Vec::len), Some(5), "{row}");
            assert!(series["median"].as_f64() > Some(0.0));
        }
    }
    assert!(
        report["memories"][2]["measured"]["random_read"]["against_base"]["difference"].is_boolean()
    );
}

#[test]
fn a_pool_that_is_short_is_a_row_with_the_command_and_no_page_is_taken() {
    let pool = or_skip!(Pool::with(SIZE / PAGE - 1));
    let report = json(&["--size", "64M", "--repeats", "5", "--pages", "2M"]);
    pool.assert_all_back();
    let why = &report["memories"][0]["not_measured"];
    assert_eq!(
        why["reason"],
        "the pool of 2 MiB pages has 31 free, 32 needed"
    );
    assert_eq!(why["hint"], "hugepages pool reserve 1 --size 2M");
}

#[test]
fn signals_give_every_page_back_and_leave_no_picture() {
    let pool = or_skip!(Pool::with(SIZE / PAGE));
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("x.svg");
    let mut child = Command::new(hugepages())
        .args([
            "tlb",
            "--size",
            "64M",
            "--pages",
            "2M",
            "--repeats",
            "1000",
            "--svg",
        ])
        .arg(&picture)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let taken = wait_for(Duration::from_secs(30), || {
        smaps::hugetlb_bytes(child.id()) == SIZE
    });
    let status = Command::new("kill")
        .args(["-s", "INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    assert!(
        taken || child.kill().is_ok(),
        "the tool never took the pages"
    );
    let output = child.wait_with_output().unwrap();
    assert!(taken, "the tool never took the pages");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(output.stderr, b"error: cancelled\n");
    pool.assert_all_back();
    assert!(!picture.exists());
}

#[test]
fn the_picture_has_a_title_labels_and_both_colour_schemes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.svg");
    tlb(&["--size", "1M", "--repeats", "5", "--pages", "base", "--svg"])
        .arg(&path)
        .assert()
        .success()
        .stdout(is_match("dependent read +4 KiB|dependent read +[0-9]+ KiB").unwrap());
    let svg = fs::read_to_string(&path).unwrap();
    for part in [
        "<svg ",
        "<title ",
        "<desc ",
        "random read, ns (lower is better)",
        "prefers-color-scheme: dark",
        "</svg>",
    ] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    // Each opened element is closed, which an XML parser checks first.
    let opened = svg.matches('<').count() - svg.matches("</").count();
    let closed = svg.matches("</").count() + svg.matches("/>").count();
    assert_eq!(opened, closed);
}

#[test]
fn nonsense_arguments_are_explained_with_exit_code_2() {
    for (args, cause) in [
        (["--size", "-1"], "cannot be negative"),
        (["--size", "1e99"], "unknown unit"),
        (["--size", "0"], "at least 1 MiB"),
        (["--pages", "3M"], "not a huge page size"),
        (["--pages", ""], "not a huge page size"),
        (["--repeats", "0"], "is not in 5..=1000"),
        (["--repeats", "-1"], "is not in 5..=1000"),
    ] {
        tlb(&args)
            .assert()
            .code(2)
            .stdout("")
            .stderr(contains(cause));
    }
}

#[test]
fn more_memory_than_there_is_ends_with_exit_code_3_before_any_is_taken() {
    tlb(&["--size", "1000T", "--pages", "base"])
        .assert()
        .code(3)
        .stdout("")
        .stderr(contains("too little memory").and(contains("hint: use --size ")));
}

#[test]
fn a_picture_that_cannot_be_written_is_known_before_measuring() {
    tlb(&["--svg", "/nonexistent/x.svg"])
        .assert()
        .code(1)
        .stdout("")
        .stderr(contains("/nonexistent/x.svg"));
}
