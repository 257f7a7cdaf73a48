//! With the option off, the server's mappings and system calls equal stock's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::smaps::Vma;
use crate::support::{gguf, models, need, or_skip, smaps, wait_for};

/// The mappings of the model's files without addresses: rights, length, offset.
fn shape(server: &Server, model: &Path) -> Vec<(String, u64, u64)> {
    let vmas = smaps::read(server.pid());
    assert!(
        !vmas.iter().any(Vma::is_huge),
        "a huge mapping\n{}",
        server.log()
    );
    assert!(
        !vmas.iter().any(|vma| vma.path.starts_with("/memfd:")),
        "a memfd\n{}",
        server.log()
    );
    let files = gguf::files(model);
    let shape: Vec<_> = files
        .iter()
        .flat_map(|file| smaps::of_file(&vmas, file))
        .map(|vma| (vma.perms.clone(), vma.len(), vma.offset))
        .collect();
    assert!(shape.len() >= files.len(), "stock maps every file");
    shape
}

fn mappings_are_those_of_stock(model: &Path) {
    let expected = shape(&or_skip!(Launch::stock()).model(model).start(), model);
    // The pool has enough free pages, but the server must take none.
    let need = need::of(&Launch::ours().model(model));
    let pool = or_skip!(Pool::with(need));
    let server = Launch::ours().model(model).start();
    assert_eq!(shape(&server, model), expected);
    assert_eq!(pool.taken(), 0);
    drop(server);
    let server = Launch::ours()
        .model(model)
        .args(["--no-hugepages", "--hugepage-policy", "require"])
        .start();
    assert_eq!(shape(&server, model), expected, "--no-hugepages");
}

#[test]
fn mappings_of_one_file_are_those_of_stock() {
    mappings_are_those_of_stock(&models::demo("100M", "Q8_0"));
}

#[test]
fn mappings_of_shards_are_those_of_stock() {
    mappings_are_those_of_stock(&models::demo_in_shards("100M", "Q8_0", 3));
}

/// Only the engine inspects the pools, creates hugetlb files, and reads their mappings.
const ENGINE: [&str; 4] = [
    "/sys/kernel/mm/hugepages",
    "/proc/self/smaps",
    "HUGETLB",
    "memfd_create",
];

/// A server's calls that concern mappings, from start to end: how often it makes each call with its flags, without addresses.
fn calls(launch: Launch, model: &Path) -> BTreeMap<String, usize> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let output = dir.path().join("trace");
    let mut server = launch
        .model(model)
        .traced("memfd_create,madvise,openat,mmap", &output)
        .spawn();
    server.wait_until_ready();
    server.assert_answers();
    let last = format!("{} +++ exited", server.pid());
    server.stop(Signal::TERM);
    let mut trace = String::new();
    let whole = wait_for(Duration::from_secs(30), || {
        trace = fs::read_to_string(&output).expect("strace writes it");
        trace.lines().any(|line| {
            line.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .starts_with(&last)
        })
    });
    assert!(whole, "the trace does not reach the end");

    let mut calls = BTreeMap::new();
    for line in trace.lines() {
        let call = line
            .split_once(' ')
            .map_or(line, |(_pid, call)| call.trim_start());
        let key = if call.starts_with("openat") && call.contains(".gguf\"") {
            "openat of the model".to_owned()
        } else if call.starts_with("mmap") && call.contains(".gguf>") {
            let flags = call
                .split(", ")
                .skip(2)
                .take(2)
                .collect::<Vec<_>>()
                .join(" ");
            format!("mmap of the model {flags}")
        } else if call.starts_with("madvise") {
            let advice = call.rsplit(", ").next().unwrap_or_default();
            advice
                .split([')', ' '])
                .next()
                .unwrap_or_default()
                .to_owned()
        } else if ENGINE.iter().any(|part| call.contains(part)) {
            call.to_owned()
        } else {
            continue;
        };
        *calls.entry(key).or_insert(0) += 1;
    }
    calls
}

#[test]
fn no_engine_call_is_made() {
    if Command::new("strace").arg("--version").output().is_err() {
        return crate::support::skip("strace is not installed");
    }
    let model = models::demo("20M", "Q8_0");
    let mut expected = calls(or_skip!(Launch::stock()), &model);
    assert!(
        expected
            .keys()
            .any(|call| call.starts_with("mmap of the model")),
        "the trace shows no mapping of the model: {expected:?}"
    );
    let mut off = calls(Launch::ours(), &model);
    // The number of threads that end and return their stacks differs from run to run.
    for calls in [&mut expected, &mut off] {
        calls.remove("MADV_DONTNEED");
    }
    assert_eq!(off, expected);
    let is_engine = |call: &String| ENGINE.iter().any(|part| call.contains(part));
    assert!(!off.keys().any(is_engine), "{off:?}");

    // With the option on, the same trace shows the engine.
    let need = need::of(&Launch::ours().model(&model));
    let _pool = or_skip!(Pool::with(need));
    let on = calls(Launch::ours().hugepages("require"), &model);
    assert!(
        on.keys().any(|call| call.starts_with("memfd_create")),
        "{on:?}"
    );
    // strace before 5.18 prints a number instead of the name.
    assert!(
        on.contains_key("0x17") || on.contains_key("MADV_POPULATE_WRITE"),
        "{on:?}"
    );
}
