//! Seccomp filters. If a filter refuses an optional call, the answers stay the same; if it refuses a needed call, a message names it.
//! Lives here: the table of calls and their outcomes. Not here: how to make a filter (`support::seccomp`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::preload;
use crate::support::pool::{PAGE, Pool};
use crate::support::seccomp::{self, Call, Filter, Is, Match, Refusal};
use crate::support::server::{Ended, Launch};
use crate::support::store::{Mounted, Store};
use crate::support::{full, models, need, or_skip, page_cache, plan, programs};

/// A call that the engine can do without.
struct Optional {
    call: Call,
    /// Arguments under which the engine makes the call.
    args: &'static [&'static str],
    /// Whether stock llama.cpp or the C library makes the call too. A filter that kills for such a call kills stock, so the project claims
    /// nothing.
    stock_dies: bool,
}

impl Optional {
    const fn of(name: &'static str, matches: &'static [Match]) -> Self {
        Self {
            call: Call { name, matches },
            args: &[],
            stock_dies: false,
        }
    }

    const fn with(mut self, args: &'static [&'static str]) -> Self {
        self.args = args;
        self
    }

    const fn stock_dies(mut self) -> Self {
        self.stock_dies = true;
        self
    }

    fn is_a_claim(&self, refusal: Refusal) -> bool {
        refusal != Refusal::Kill || !self.stock_dies
    }
}

// Newer than the constants of libc.
const SYS_CACHESTAT: i64 = 451;
// linux/prctl.h: the name of anonymous memory
const PR_SET_VMA: i32 = 0x5356_4d41;

#[cfg(target_arch = "x86_64")]
const OPEN_DIRECT: &[Match] = &[
    Match::with(libc::SYS_openat, 2, Is::With(libc::O_DIRECT)),
    Match::with(libc::SYS_open, 1, Is::With(libc::O_DIRECT)),
];
#[cfg(not(target_arch = "x86_64"))]
const OPEN_DIRECT: &[Match] = &[Match::with(libc::SYS_openat, 2, Is::With(libc::O_DIRECT))];

const OPTIONAL: &[Optional] = &[
    // Content of the page cache.
    Optional::of("cachestat", &[Match::any(SYS_CACHESTAT)]),
    Optional::of("mincore", &[Match::any(libc::SYS_mincore)]),
    Optional::of("preadv2", &[Match::any(libc::SYS_preadv2)]),
    // Ways to read a file.
    Optional::of("statx", &[Match::any(libc::SYS_statx)]),
    Optional::of("open(O_DIRECT)", OPEN_DIRECT),
    Optional::of("fadvise64", &[Match::any(libc::SYS_fadvise64)]).stock_dies(),
    // Names of mappings, and the time of an image's last use.
    Optional::of(
        "prctl(PR_SET_VMA)",
        &[Match::with(libc::SYS_prctl, 0, Is::Equal(PR_SET_VMA))],
    ),
    Optional::of("utimensat", &[Match::any(libc::SYS_utimensat)]),
    // Turns of the loads of several processes.
    Optional::of("flock", &[Match::any(libc::SYS_flock)]),
    // NUMA nodes.
    Optional::of("mbind", &[Match::any(libc::SYS_mbind)]).with(&["--numa", "distribute"]),
    Optional::of("get_mempolicy", &[Match::any(libc::SYS_get_mempolicy)])
        .with(&["--numa", "numactl"]),
    Optional::of("set_mempolicy", &[Match::any(libc::SYS_set_mempolicy)])
        .with(&["--numa", "distribute"]),
    Optional::of("get_mempolicy", &[Match::any(libc::SYS_get_mempolicy)])
        .with(&["--numa", "distribute"]),
    Optional::of("move_pages", &[Match::any(libc::SYS_move_pages)]).with(&["--numa", "distribute"]),
    Optional::of("getcpu", &[Match::any(libc::SYS_getcpu)])
        .with(&["--numa", "isolate"])
        .stock_dies(),
    Optional::of(
        "sched_getaffinity",
        &[Match::any(libc::SYS_sched_getaffinity)],
    )
    .with(&["--numa", "numactl"])
    .stock_dies(),
];

/// A server without this call cannot put memory on huge pages.
const MEMFD_CREATE: Call = Call {
    name: "memfd_create",
    matches: &[Match::any(libc::SYS_memfd_create)],
};
/// The C library makes this call when a thread ends, so a filter that kills for it kills stock.
const MADVISE: Call = Call {
    name: "madvise",
    matches: &[Match::any(libc::SYS_madvise)],
};
/// These two calls set the size of a file of huge pages, and free single pages.
const FTRUNCATE: Call = Call {
    name: "ftruncate",
    matches: &[Match::any(libc::SYS_ftruncate)],
};
const FALLOCATE: Call = Call {
    name: "fallocate",
    matches: &[Match::any(libc::SYS_fallocate)],
};
/// The locks of resident images. A filter that kills for every fcntl kills most services.
const FCNTL: Call = Call {
    name: "fcntl",
    matches: &[Match::with(
        libc::SYS_fcntl,
        1,
        Is::Equal(libc::F_OFD_SETLK),
    )],
};

/// Calls that every useful service needs: files, memory, locks, and Rust's startup.
const BASIC: &[&str] = &[
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "fchmod",
    "fcntl",
    "fstatfs",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrlimit",
    "gettid",
    "getuid",
    "ioctl",
    "linkat",
    "poll",
    "prctl",
    "pread64",
    "readlink",
    "readlinkat",
    "renameat",
    "restart_syscall",
    "sched_yield",
    "sigaltstack",
    "statfs",
    "unlinkat",
];

/// The destination of the weights. The engine uses separate code for each.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    /// The image of the file.
    Mapped,
    /// A buffer, through staging buffers.
    Repacked,
}

use Weights::{Mapped, Repacked};

impl Weights {
    fn model(self) -> PathBuf {
        match self {
            Mapped => models::demo("20M", "Q8_0"),
            Repacked => models::demo("20M", "Q4_0"),
        }
    }

    fn of(self, launch: Launch) -> Launch {
        match self {
            Mapped => launch.model(&self.model()),
            Repacked => launch.repacked_model(&self.model()),
        }
    }

    fn need(self) -> u64 {
        need::of(&self.of(Launch::ours()))
    }

    /// Stock's answer, without a filter.
    fn answer(self) -> Result<&'static Value, String> {
        static ANSWERS: [OnceLock<Result<Value, String>>; 2] = [const { OnceLock::new() }; 2];
        let answer = ANSWERS[self as usize].get_or_init(|| {
            let outcome = Outcome::of(self.of(Launch::stock()?));
            let answer = outcome
                .answer()
                .unwrap_or_else(|end| panic!("stock: {end}"));
            Ok(answer.clone())
        });
        answer.as_ref().map_err(Clone::clone)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Nowhere,
    /// The server creates the image.
    Empty,
    /// The image is complete.
    Full,
}

use Stored::{Empty, Full, Nowhere};

/// Two entries further, the model is the same and the store is another.
const SETTINGS: [(Weights, Stored); 6] = [
    (Mapped, Nowhere),
    (Repacked, Nowhere),
    (Mapped, Empty),
    (Repacked, Empty),
    (Mapped, Full),
    (Repacked, Full),
];

/// Two stores and the pages for them.
struct Bench {
    empty: Mounted,
    full: Store,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let needs = [Mapped.need(), Repacked.need()];
        for weights in [Mapped, Repacked] {
            weights.answer()?;
        }
        // One store keeps both models, the other one at a time. Each manifest takes a page.
        let full = Store::with(needs.iter().sum::<u64>() + needs[0].max(needs[1]) + 6)?;
        let empty = Mounted::with(&format!("pagesize={PAGE}"))?;
        let bench = Self { empty, full };
        for weights in [Mapped, Repacked] {
            bench
                .launch(weights, Full)
                .hugepages("require")
                .start()
                .stop(Signal::TERM);
        }
        let images = bench.full.images();
        assert!(images.len() >= 2, "{images:?}");
        Ok(bench)
    }

    fn launch(&self, weights: Weights, stored: Stored) -> Launch {
        let launch = weights.of(Launch::ours());
        let store = match stored {
            Nowhere => return launch,
            Empty => self.empty.path(),
            Full => self.full.path(),
        };
        launch.args(["--hugepage-store"]).args([store.as_os_str()])
    }

    /// A server whose model is not in the page cache if `is_cold`, and in it otherwise.
    fn ready(&self, (weights, stored): (Weights, Stored), is_cold: bool) -> Launch {
        for name in self.empty.names() {
            fs::remove_file(self.empty.path().join(name)).expect("the store is the test's");
        }
        let model = weights.model();
        if is_cold {
            page_cache::drop_file(&model);
        } else {
            fs::read(&model).expect("the model exists");
        }
        self.launch(weights, stored)
    }
}

/// A server from its start to its end, with its answer if it served.
struct Outcome {
    answer: Option<Value>,
    ended: Ended,
}

impl Outcome {
    /// Ends a server after its answer, or waits until it fails.
    fn of(launch: Launch) -> Self {
        let mut server = launch.spawn();
        if !server.is_ready_before_it_ends() {
            return Self {
                answer: None,
                ended: server.wait(),
            };
        }
        let options = json!({ "temperature": 0, "seed": 1, "n_predict": 12 });
        let answer = server.complete("Once upon a time", &options);
        Self {
            answer: Some(answer),
            ended: server.stop(Signal::TERM),
        }
    }

    /// The answer of a server that served and ended without an error.
    fn answer(&self) -> Result<&Value, String> {
        let Ended { status, log } = &self.ended;
        match &self.answer {
            Some(answer) if status.success() => Ok(answer),
            Some(_) => Err(format!("after its answer: {status}\n{log}")),
            None => Err(format!("{status}\n{log}")),
        }
    }

    fn is_stocks(&self, weights: Weights) -> Result<(), String> {
        let answer = self.answer()?;
        let stock = weights.answer().expect("asked for before");
        if answer == stock {
            Ok(())
        } else {
            Err(format!("another answer: {answer}, stock: {stock}"))
        }
    }

    /// Checks that the server ended by itself with exit code 1 and a message that names the call.
    fn names(&self, call: &Call) -> Result<(), String> {
        let Ended { status, log } = &self.ended;
        if self.answer.is_some() {
            return Err(format!("served\n{log}"));
        }
        if status.code() != Some(1) {
            return Err(format!("{status}\n{log}"));
        }
        if !log.contains(call.name) {
            return Err(format!("no message names `{}`\n{log}", call.name));
        }
        Ok(())
    }

    /// Checks that a warning names the call.
    fn warns(&self, call: &Call) -> Result<(), String> {
        let log = &self.ended.log;
        let mut lines = log.lines();
        if lines.any(|line| line.contains(" W ") && line.contains(call.name)) {
            return Ok(());
        }
        Err(format!("no warning names `{}`\n{log}", call.name))
    }
}

/// Collects the wrong rows of a table, so that a failure shows all of them.
#[derive(Default)]
struct Rows {
    count: u32,
    wrong: Vec<String>,
}

impl Rows {
    fn add(&mut self, row: &str, result: Result<(), String>) {
        self.count += 1;
        if let Err(text) = result {
            // Enough of the log to see the cause.
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(4).max(1)..];
            self.wrong
                .push(format!("{row}: {}\n    {}", lines[0], last.join("\n    ")));
        }
    }

    fn check(self) {
        let Self { count, wrong } = self;
        assert!(count > 0, "the table is empty");
        assert!(
            wrong.is_empty(),
            "{} of {count} rows are wrong\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

/// Refuses each call alone: in one setting that changes from row to row, or in all settings with `LLAMA_HUGEPAGES_TEST_FULL=1`.
fn each_optional_call(refusal: Refusal) {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    let turn = Refusal::ALL
        .iter()
        .position(|r| *r == refusal)
        .expect("one of all");
    for (i, optional) in OPTIONAL.iter().enumerate() {
        if !optional.is_a_claim(refusal) {
            continue;
        }
        for (j, setting) in SETTINGS.into_iter().enumerate() {
            for is_cold in [true, false] {
                let is_chosen =
                    j == (i + 2 * turn) % SETTINGS.len() && is_cold == ((i + turn) % 2 == 0);
                if !is_chosen && !full() {
                    continue;
                }
                let filter = Filter::refusing(&[optional.call], refusal);
                let launch = bench.ready(setting, is_cold).args(optional.args);
                let outcome = Outcome::of(launch.hugepages("require").filtered(filter));
                let name = optional.call.name;
                let row = format!("{name} {refusal:?}, {setting:?}, cold {is_cold}");
                rows.add(&row, outcome.is_stocks(setting.0));
            }
        }
    }
    rows.check();
}

/// Refuses all optional calls at once, in every setting.
fn all_optional_calls(refusal: Refusal) {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    for setting in SETTINGS {
        let launch = bench.ready(setting, true).hugepages("require");
        let launch = launch.filtered(all_refused(refusal));
        let result = Outcome::of(launch).is_stocks(setting.0);
        rows.add(&format!("{setting:?}"), result);
    }
    rows.check();
}

fn all_refused(refusal: Refusal) -> Filter {
    let calls: Vec<Call> = OPTIONAL
        .iter()
        .filter(|optional| optional.is_a_claim(refusal))
        .map(|optional| optional.call)
        .collect();
    Filter::refusing(&calls, refusal)
}

#[test]
fn stock_serves_under_the_filters_of_the_table() {
    let mut rows = Rows::default();
    for refusal in Refusal::ALL {
        let launch = Mapped.of(or_skip!(Launch::stock()));
        or_skip!(Mapped.answer());
        let outcome = Outcome::of(launch.filtered(all_refused(refusal)));
        rows.add(&format!("{refusal:?}"), outcome.is_stocks(Mapped));
    }
    rows.check();
}

#[test]
fn an_optional_call_that_fails_with_eperm_changes_no_answer() {
    each_optional_call(Refusal::Errno(libc::EPERM));
}

#[test]
fn an_optional_call_that_fails_with_enosys_changes_no_answer() {
    each_optional_call(Refusal::Errno(libc::ENOSYS));
}

#[test]
fn an_optional_call_that_a_filter_kills_for_changes_no_answer() {
    each_optional_call(Refusal::Kill);
}

#[test]
fn all_optional_calls_together_fail_with_eperm_and_change_no_answer() {
    all_optional_calls(Refusal::Errno(libc::EPERM));
}

#[test]
fn all_optional_calls_together_fail_with_enosys_and_change_no_answer() {
    all_optional_calls(Refusal::Errno(libc::ENOSYS));
}

#[test]
fn a_filter_that_kills_for_all_optional_calls_changes_no_answer() {
    all_optional_calls(Refusal::Kill);
}

/// Stock's server with the preload library, which may take the pages of [`pages_of_preloaded`]. It reads the file, and not the page cache.
fn preloaded(weights: Weights) -> Launch {
    page_cache::drop_file(&weights.model());
    weights.of(preload::stock("require").expect("asked for an answer before"))
}

/// For each of the two models, its copy in a store, and one of them in a process.
fn pages_of_preloaded() -> u64 {
    let pages = [Mapped, Repacked].map(|weights| preload::pages(&weights.model()));
    pages.iter().sum::<u64>() + pages[0].max(pages[1])
}

/// The library uses the calls of the engine, but a Rust library and a program that knows nothing of huge pages add others: it looks at
/// files before it knows that they are models, and it returns pages that the program unmaps or copies.
#[test]
fn a_filter_that_kills_for_optional_calls_spares_a_program_with_the_preload_library() {
    for weights in [Mapped, Repacked] {
        or_skip!(weights.answer());
    }
    let store = or_skip!(Store::with(pages_of_preloaded()));
    let optional: Vec<Call> = OPTIONAL
        .iter()
        .filter(|optional| optional.is_a_claim(Refusal::Kill))
        .map(|optional| optional.call)
        .collect();
    let mut rows = Rows::default();
    let mut run = |row: &str, calls: &[Call], weights: Weights, launch: Launch| {
        let filter = Filter::refusing(calls, Refusal::Kill);
        let outcome = Outcome::of(launch.filtered(filter));
        // Without it, equal answers prove nothing.
        let is_huge = outcome.ended.log.contains("MiB on huge pages, loaded");
        let result = outcome.is_stocks(weights).and_then(|()| {
            let log = &outcome.ended.log;
            is_huge
                .then_some(())
                .ok_or_else(|| format!("not on huge pages\n{log}"))
        });
        rows.add(&format!("{row}, {weights:?}"), result);
    };
    // Without a store, the pages of a file return one by one.
    let alone: Vec<Call> = optional.iter().copied().chain([FALLOCATE]).collect();
    for (i, call) in alone.iter().enumerate() {
        for (j, weights) in [Mapped, Repacked].into_iter().enumerate() {
            if i % 2 == j || full() {
                run(call.name, &[*call], weights, preloaded(weights));
            }
        }
    }
    for weights in [Mapped, Repacked] {
        run("all", &alone, weights, preloaded(weights));
        store.pool.assert_all_back();
    }
    for weights in [Mapped, Repacked] {
        for stored in [Empty, Full] {
            let launch = preloaded(weights).env("LLAMA_ARG_HUGEPAGE_STORE", store.arg());
            run(&format!("all, {stored:?}"), &optional, weights, launch);
        }
    }
    rows.check();
    store.assert_only_files_hold_pages();
}

/// Names of the calls that a server makes to start, to answer and to end.
fn calls_of(launch: Launch) -> BTreeSet<String> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let trace = dir.path().join("trace");
    let launch = launch.traced("all", &trace);
    let outcome = Outcome::of(launch);
    let answer = outcome.answer();
    answer.unwrap_or_else(|end| panic!("under strace: {end}"));
    let text = fs::read(&trace).expect("strace wrote it");
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let (_, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            let name = match name {
                // An strace that is older than the call prints its number.
                "syscall_0x1c3" => "cachestat",
                name => name,
            };
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| name.to_owned())
        })
        .collect()
}

/// Asserts that each of a server's calls is in a table, or that stock makes it too.
fn assert_in_the_table(what: &str, calls: &BTreeSet<String>) {
    static STOCK: OnceLock<BTreeSet<String>> = OnceLock::new();
    let stock = STOCK.get_or_init(|| {
        let of = |weights: Weights| {
            let stock = Launch::stock().expect("asked for an answer before");
            calls_of(weights.of(stock))
        };
        [Mapped, Repacked].into_iter().flat_map(of).collect()
    });
    let tables: BTreeSet<&str> = OPTIONAL
        .iter()
        .map(|optional| &optional.call)
        .chain([&MEMFD_CREATE, &MADVISE, &FTRUNCATE, &FALLOCATE])
        .map(|call| call.name)
        .chain(BASIC.iter().copied())
        .collect();
    let others: Vec<&String> = calls
        .iter()
        .filter(|name| !stock.contains(*name) && !tables.contains(name.as_str()))
        .collect();
    assert!(others.is_empty(), "{what}: {others:?}");
}

#[test]
fn each_call_that_stock_does_not_make_is_in_the_table() {
    or_skip!(programs::found("strace"));
    let bench = or_skip!(Bench::new());
    for setting in SETTINGS {
        let calls = calls_of(bench.ready(setting, true).hugepages("require"));
        assert_in_the_table(&format!("{setting:?}"), &calls);
    }
}

#[test]
fn each_call_that_the_preload_library_adds_to_those_of_stock_is_in_the_table() {
    or_skip!(programs::found("strace"));
    for weights in [Mapped, Repacked] {
        or_skip!(weights.answer());
    }
    let _pool = or_skip!(Pool::with(pages_of_preloaded()));
    for weights in [Mapped, Repacked] {
        let calls = calls_of(preloaded(weights));
        assert_in_the_table(&format!("{weights:?}, preloaded"), &calls);
    }
}

/// Needed calls, with the refusals under which stock serves.
fn needed() -> impl Iterator<Item = (Call, Refusal)> {
    let all = |call| Refusal::ALL.map(|refusal| (call, refusal));
    all(MEMFD_CREATE)
        .into_iter()
        .chain(all(MADVISE).into_iter().take(2))
}

#[test]
fn under_require_a_needed_call_that_is_refused_is_named_and_the_exit_code_is_1() {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    for (call, refusal) in needed() {
        for weights in [Mapped, Repacked] {
            let launch = bench.ready((weights, Nowhere), true).hugepages("require");
            let outcome = Outcome::of(launch.filtered(Filter::refusing(&[call], refusal)));
            let row = format!("{} {refusal:?}, {weights:?}", call.name);
            rows.add(&row, outcome.names(&call));
        }
    }
    rows.check();
    bench.full.assert_only_files_hold_pages();
}

/// With a store, a server may need a call less often, or never.
#[test]
fn under_require_with_a_store_a_server_without_a_needed_call_serves_or_names_it() {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    let others = [FTRUNCATE, FALLOCATE]
        .into_iter()
        .flat_map(|call| Refusal::ALL.map(|refusal| (call, refusal)));
    let locks = Refusal::ALL.map(|refusal| (FCNTL, refusal));
    let locks = locks
        .into_iter()
        .filter(|(_, refusal)| *refusal != Refusal::Kill);
    for (i, (call, refusal)) in needed().chain(others).chain(locks).enumerate() {
        for (j, setting) in SETTINGS.into_iter().enumerate() {
            let has_a_test = setting.1 == Nowhere && i < needed().count();
            if has_a_test || (!full() && i % 2 != j % 2) {
                continue;
            }
            let launch = bench.ready(setting, true).hugepages("require");
            let outcome = Outcome::of(launch.filtered(Filter::refusing(&[call], refusal)));
            let result = match &outcome.answer {
                Some(_) => outcome.is_stocks(setting.0),
                None => outcome.names(&call),
            };
            rows.add(&format!("{} {refusal:?}, {setting:?}", call.name), result);
        }
    }
    rows.check();
}

#[test]
fn under_prefer_a_needed_call_that_is_refused_is_a_warning_and_the_answer_is_that_of_stock() {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    for (call, refusal) in needed() {
        for (i, setting) in SETTINGS.into_iter().enumerate() {
            if setting.1 != Nowhere && !full() && (refusal == Refusal::Kill) == (i % 2 == 0) {
                continue;
            }
            let launch = bench.ready(setting, true).hugepages("prefer");
            let outcome = Outcome::of(launch.filtered(Filter::refusing(&[call], refusal)));
            let result = outcome.is_stocks(setting.0);
            let row = format!("{} {refusal:?}, {setting:?}", call.name);
            rows.add(&row, result.and_then(|()| outcome.warns(&call)));
        }
    }
    rows.check();
}

/// The tool's output under a filter, or an error if a signal ended the tool.
fn told(mut tool: Command, filter: &Filter) -> Result<Output, String> {
    filter.apply(&mut tool);
    let output = tool.output().expect("the tool can be started");
    let text = all_of(&output);
    match output.status.signal() {
        None => Ok(output),
        Some(_) => Err(format!("{}\n{text}", output.status)),
    }
}

fn all_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn plan_names_a_needed_call_that_is_refused() {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    for (call, refusal) in needed() {
        let launch = bench.launch(Mapped, Nowhere);
        let output = told(plan::command(&launch), &Filter::refusing(&[call], refusal));
        let result = output.and_then(|output| {
            let text = all_of(&output);
            if output.status.code() == Some(1) && text.contains(call.name) {
                Ok(())
            } else {
                Err(format!("{}\n{text}", output.status))
            }
        });
        rows.add(&format!("{} {refusal:?}", call.name), result);
    }
    rows.check();
}

#[test]
fn doctor_names_a_needed_call_that_is_refused() {
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    for (call, refusal) in needed() {
        let mut doctor = Command::new(programs::hugepages());
        // The table format wraps long texts.
        doctor.args(["doctor", "--format", "json"]);
        let output = told(doctor, &Filter::refusing(&[call], refusal));
        let result = output.and_then(|output| {
            let text = all_of(&output);
            if !output.status.success() && text.contains(call.name) {
                Ok(())
            } else {
                Err(format!("{}\n{text}", output.status))
            }
        });
        rows.add(&format!("{} {refusal:?}", call.name), result);
    }
    rows.check();
    drop(bench);
}

#[test]
fn under_the_filter_of_a_systemd_unit_that_kills_the_answer_is_that_of_stock() {
    let allowed = or_skip!(seccomp::system_service());
    let filter = Filter::allowing(&allowed, Refusal::Kill);
    let bench = or_skip!(Bench::new());
    let mut rows = Rows::default();
    let stock = Launch::stock().expect("asked for an answer before");
    let stock = Outcome::of(Mapped.of(stock).filtered(filter.clone()));
    rows.add("stock", stock.is_stocks(Mapped));
    for setting in SETTINGS {
        for (policy, is_cold) in [("require", true), ("prefer", false)] {
            let launch = bench.ready(setting, is_cold).hugepages(policy);
            let outcome = Outcome::of(launch.filtered(filter.clone()));
            let row = format!("{setting:?}, {policy}, cold {is_cold}");
            rows.add(&row, outcome.is_stocks(setting.0));
        }
    }
    for weights in [Mapped, Repacked] {
        let launch = bench.ready((weights, Nowhere), true).hugepages("prefer");
        let launch = launch.args(["--hugepage-size", "thp"]);
        let outcome = Outcome::of(launch.filtered(filter.clone()));
        rows.add(&format!("{weights:?}, THP"), outcome.is_stocks(weights));
    }
    rows.check();
}
