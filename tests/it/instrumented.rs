//! Counts instructions, and finds races and invalid memory in instrumented programs. `cargo xtask instrumented` takes minutes to build
//! them, so only `make test-full` runs these tests.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::json;

use crate::support::pool::Pool;
use crate::support::server::{Launch, QUIET_THREADS};
use crate::support::store::Store;
use crate::support::{models, or_skip, programs};

/// The same arguments for all runs, so that they are comparable.
const ARGS: [&str; 12] = [
    "--prompt",
    "hello",
    "-no-cnv",
    "--temp",
    "0",
    "--seed",
    "1",
    "--ctx-size",
    "256",
    "--ignore-eos",
    "--threads",
    "1",
];

fn run(wrapper: &[&str], program: &Path, model: &Path, args: &[&str]) -> Output {
    let mut line: Vec<&str> = wrapper.to_vec();
    let (program, model) = (program.to_string_lossy(), model.to_string_lossy());
    line.extend([&*program, "--model", &*model]);
    line.extend(ARGS);
    line.extend(args);
    Command::new(line[0])
        .args(&line[1..])
        .env(QUIET_THREADS.0, QUIET_THREADS.1)
        // A separate exit code marks a finding. Leaks do not count, because upstream leaves memory that lives as long as the process to the
        // kernel.
        .env("ASAN_OPTIONS", "exitcode=77:detect_leaks=0")
        .env("UBSAN_OPTIONS", "halt_on_error=1:exitcode=77")
        .env("TSAN_OPTIONS", "exitcode=77:halt_on_error=1")
        .output()
        .unwrap_or_else(|error| panic!("cannot start {line:?}: {error}"))
}

/// Instructions from start to end, as Valgrind counts them.
fn instructions(program: &Path, model: &Path, tokens: u32) -> u64 {
    let wrapper = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
    ];
    let output = run(
        &wrapper,
        program,
        model,
        &["--predict", &tokens.to_string()],
    );
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    collected(&talk)
}

/// The count that Valgrind prints at the end.
fn collected(log: &str) -> u64 {
    log.lines()
        .find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no count in\n{log}"))
}

/// Compares runs that differ by eight tokens, which cancels the cost of loading.
fn instructions_of_a_token(program: &Path, model: &Path) -> f64 {
    let (few, many) = (
        instructions(program, model, 2),
        instructions(program, model, 10),
    );
    (many - few) as f64 / 8.0
}

#[test]
#[ignore = "long: make test-full"]
fn a_token_costs_as_many_instructions_as_in_stock() {
    or_skip!(programs::found("valgrind"));
    let model = models::demo("20M", "Q8_0");
    let stock =
        instructions_of_a_token(&or_skip!(programs::instrumented("portable-stock")), &model);
    let ours = instructions_of_a_token(&or_skip!(programs::instrumented("portable-tools")), &model);
    let ratio = ours / stock;
    println!(
        "instructions of a token: stock {stock:.0}, ours with the option off {ours:.0}, ratio {ratio:.6}"
    );
    assert!((ratio - 1.0).abs() < 0.001, "stock {stock}, ours {ours}");
}

/// Instructions of the main loop of a server, as Valgrind counts them: slots, decodes, and what keeps a context.
fn instructions_of_slots(launch: Launch, tokens: u32) -> u64 {
    let server = launch
        .args(["--threads", "1"])
        .wrapped([
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            // through the wrappers that start the server
            "--trace-children=yes",
            "--toggle-collect=server_context_impl::update_slots()",
        ])
        .start();
    server.complete("hello", &json!({ "temperature": 0, "n_predict": tokens }));
    collected(&server.stop(Signal::TERM).log)
}

#[test]
#[ignore = "long: make test-full"]
fn a_token_costs_as_many_instructions_with_a_kept_context() {
    or_skip!(programs::found("valgrind"));
    // Valgrind emulates an older CPU, for which these programs choose another library.
    let program = or_skip!(programs::portable()).join("llama-server");
    let model = models::demo("20M", "Q8_0");
    let store = or_skip!(Store::with(64));
    let launch = || {
        Launch::of(program.clone())
            .model(&model)
            .hugepages("require")
            .args(["--hugepage-store", store.arg()])
    };
    let of_a_token = |args: &[&str]| {
        let count = |tokens| instructions_of_slots(launch().args(args), tokens);
        let (few, many) = (count(4), count(36));
        (many - few) as f64 / 32.0
    };
    let without = of_a_token(&[]);
    let with = of_a_token(&["--hugepage-keep-context"]);
    let ratio = with / without;
    println!(
        "instructions of a token: {without:.0}, with a kept context {with:.0}, ratio {ratio:.6}"
    );
    assert!((ratio - 1.0).abs() < 0.001, "{without}, {with}");
    store.empty();
    store.pool.assert_all_back();
}

/// Loads under both policies, mapped and repacked, with a large enough pool and with a short one.
fn loads_without_a_finding(how: &str) {
    let program = or_skip!(programs::instrumented(how));
    let mut pool = or_skip!(Pool::with(0));
    for kind in ["Q8_0", "Q4_K"] {
        let model = models::demo("100M", kind);
        for (pages, args) in [
            (120, &["--hugepage-policy", "require"][..]),
            (120, &["--load-mode", "none"]),
            (30, &["--hugepage-policy", "prefer"]),
            (0, &["--hugepage-size", "thp"]),
            (30, &["--hugepage-policy", "require"]),
        ] {
            pool.set(pages);
            let is_short = pages == 30 && args.contains(&"require");
            let mut all = vec!["--hugepages", "--predict", "4"];
            all.extend(args);
            let output = run(&["env"], &program, &model, &all);
            let talk = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(i32::from(is_short)),
                "{kind} {args:?} with {pages} pages\n{talk}"
            );
            assert!(!talk.contains("Sanitizer"), "{talk}");
            pool.assert_all_back();
        }
    }
}

#[test]
#[ignore = "long: make test-full"]
fn loading_touches_no_memory_that_is_not_its_own() {
    loads_without_a_finding("address");
}

#[test]
#[ignore = "long: make test-full"]
fn loading_has_no_race() {
    loads_without_a_finding("thread");
}
