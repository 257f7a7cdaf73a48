//! The fault matrix: under any shortage at any moment, the server ends with a message and an exit code, or answers as without huge pages.
//! No signal ends it, and it keeps no page.
//! Lives here: pools, limits, races, and ends in the middle. Not here: files that cannot be loaded (`bad_input`).

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use llama_hugepages::{HugePages, LogTarget, Model, ModelParams, log_to};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cgroup::{Cgroup, Limit};
use crate::support::gguf::Gguf;
use crate::support::guardian::Guardian;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Ended, Launch, Server};
use crate::support::table::Table;
use crate::support::trace::bytes_read;
use crate::support::{
    full, is_root, models, need, or_skip, page_cache, programs, skip, smaps, wait_for,
};

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
    fn launch(self) -> Launch {
        self.launch_of("100M")
    }

    fn launch_of(self, size: &str) -> Launch {
        match self {
            Mapped => Launch::ours().model(&models::demo(size, "Q8_0")),
            Repacked => Launch::ours().repacked_model(&models::demo(size, "Q4_K")),
        }
    }

    fn require(self) -> Launch {
        self.launch().hugepages("require")
    }

    fn prefer(self) -> Launch {
        self.launch().hugepages("prefer")
    }

    fn need(self) -> u64 {
        need::of(&self.launch())
    }

    /// The number of the huge page file that is for the weights. A mapped file gets its pages before KV cache and compute buffers, a
    /// repacked one with its buffer, after the buffer of the tensors that stay as they are.
    fn file(self, policy: &str) -> u32 {
        let tried = u32::from(policy == "require");
        tried + if matches!(self, Self::Mapped) { 1 } else { 4 }
    }

    /// The answer without huge pages.
    fn plain_answer(self) -> &'static Value {
        static ANSWERS: [OnceLock<Value>; 2] = [OnceLock::new(), OnceLock::new()];
        ANSWERS[self as usize].get_or_init(|| answer(&self.launch().start()))
    }
}

/// Tokens and their probabilities.
fn answer(server: &Server) -> Value {
    server.complete("Once upon a time", &json!({ "temperature": 0, "seed": 1 }))
}

/// The exit code if more pages or more memory would help.
const SHORT: i32 = 3;

/// Asserts that the server failed with one message: all of `cause` on one line, and all of `hint` on another.
fn assert_says(ended: &Ended, cause: &[&str], hint: &[&str]) {
    assert_ends_with(SHORT, ended, cause, hint);
}

fn assert_ends_with(code: i32, ended: &Ended, cause: &[&str], hint: &[&str]) {
    ended.assert_clean_failure();
    assert_eq!(ended.status.code(), Some(code), "{}", ended.log);
    let line = ended.line_with(cause[0]);
    for part in cause {
        assert!(line.contains(part), "no `{part}` in: {line}\n{}", ended.log);
    }
    if !hint.is_empty() {
        let line = ended.line_with("hint: ");
        for part in hint {
            assert!(line.contains(part), "no `{part}` in: {line}\n{}", ended.log);
        }
    }
}

/// Asserts that the server answers as without huge pages, and holds no unmapped page. Returns its pages.
fn assert_serves(weights: Weights, server: &Server, pool: &Pool, others: u64) -> u64 {
    let pages = smaps::hugetlb_bytes(server.pid()) / PAGE;
    assert_eq!(pool.taken(), pages + others, "\n{}", server.log());
    assert_eq!(
        Counts::read().reserved,
        pool.counts.reserved,
        "nothing stays reserved"
    );
    assert_eq!(
        &answer(server),
        weights.plain_answer(),
        "\n{}",
        server.log()
    );
    pages
}

//
// too few from the beginning
//

#[test]
fn a_repacked_model_short_by_one_page_is_not_loaded() {
    let need = Repacked.need();
    let pool = or_skip!(Pool::with(need.saturating_sub(1)));
    let ended = Repacked.require().run();
    let total = pool.counts.total + 1;
    assert_says(
        &ended,
        &[
            &format!("needs {need} huge pages of 2 MiB"),
            &format!("only {} are usable", need - 1),
        ],
        &[
            &format!("sysctl vm.nr_hugepages={total}"),
            "--hugepage-policy prefer",
        ],
    );
    pool.assert_all_back();
}

#[test]
fn prefer_short_by_one_page_uses_all_others_and_answers_the_same() {
    for weights in [Mapped, Repacked] {
        let need = weights.need();
        weights.plain_answer();
        let pool = or_skip!(Pool::with(need.saturating_sub(1)));
        let server = weights.prefer().start();
        assert_eq!(assert_serves(weights, &server, &pool, 0), need - 1);
        drop(server);
        pool.assert_all_back();
    }
}

/// Sets a limit one page below the need, in a pool that is large enough.
fn beyond_a_limit(weights: Weights, file: &str, limit: Limit) {
    let need = weights.need();
    weights.plain_answer();
    let pool = or_skip!(Pool::with(need));
    let cgroup = or_skip!(Cgroup::with(file, need - 1, limit));
    let file = format!("hugetlb.2MB.{file}");

    let ended = weights.require().in_cgroup(&cgroup.dir).run();
    assert_says(
        &ended,
        &[
            &format!("needs {need} huge pages of 2 MiB"),
            &format!("only {} are usable", need - 1),
            &format!("free {need}"),
            &format!(
                "{file} of cgroup /{} {} (used 0)",
                cgroup.name(),
                (need - 1) * PAGE
            ),
            "the pool is large enough",
        ],
        &[&format!(
            "{file} of cgroup /{} to {}",
            cgroup.name(),
            need * PAGE
        )],
    );
    assert!(
        !ended.log.contains("sysctl"),
        "a larger pool does not help\n{}",
        ended.log
    );
    pool.assert_all_back();

    let server = weights.prefer().in_cgroup(&cgroup.dir).start();
    assert_eq!(assert_serves(weights, &server, &pool, 0), need - 1);
    drop(server);
    pool.assert_all_back();
    assert_eq!(
        cgroup.refusals(),
        0,
        "the server saw the limit before the first touch"
    );
}

#[test]
fn a_limit_on_pages_of_the_cgroup_is_respected() {
    for weights in [Mapped, Repacked] {
        beyond_a_limit(weights, "max", Limit::Here);
    }
}

#[test]
fn a_limit_on_reservations_of_the_cgroup_is_respected() {
    for weights in [Mapped, Repacked] {
        beyond_a_limit(weights, "rsvd.max", Limit::Here);
    }
}

#[test]
fn a_limit_on_pages_of_an_ancestor_is_respected() {
    beyond_a_limit(Mapped, "max", Limit::Above);
    beyond_a_limit(Repacked, "max", Limit::AboveWithoutController);
}

#[test]
fn a_limit_on_reservations_of_an_ancestor_is_respected() {
    beyond_a_limit(Mapped, "rsvd.max", Limit::AboveWithoutController);
    beyond_a_limit(Repacked, "rsvd.max", Limit::Above);
}

//
// gone between the check and the use
//

/// A server under strace, which traces `calls` and injects `what` into them.
struct Traced {
    server: Server,
    trace: PathBuf,
    _dir: TempDir,
}

impl Traced {
    fn spawn(launch: Launch, calls: &str, what: &str) -> Result<Self, String> {
        programs::found("strace")?;
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let trace = dir.path().join("trace");
        // With `-D` strace is a process of its own, so the child is the server.
        let launch = launch
            .wrapped(["strace", "-D", "-f", "-q", "-o"])
            .wrapped([&trace])
            .wrapped(["-e", &format!("trace={calls}"), "-e", what]);
        Ok(Self {
            server: launch.spawn(),
            trace,
            _dir: dir,
        })
    }

    fn trace(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }

    /// Stops a server when it creates the `n`-th file of huge pages: after it compared its need with the pool, before it reserved pages for
    /// this file. See `stages` and `Weights::file`.
    fn stopped_at_memfd(launch: Launch, n: u32) -> Result<Self, String> {
        let mut traced = Self::spawn(
            launch,
            "memfd_create",
            &format!("inject=memfd_create:signal=STOP:when={n}"),
        )?;
        let stopped = wait_for(Duration::from_secs(60), || {
            traced.trace().contains("--- stopped by SIGSTOP") || traced.server.has_ended()
        });
        assert!(
            stopped && !traced.server.has_ended(),
            "the server never created file {n}\n{}\n{}",
            traced.trace(),
            traced.server.log()
        );
        Ok(traced)
    }

    fn go_on(&self) {
        let pid = Pid::from_raw(self.server.pid().cast_signed()).expect("not 0");
        kill_process(pid, Signal::CONT).expect("the process is a child of ours");
    }
}

/// The files before which another process takes pages. The last three are for weights, KV cache and compute buffers. Under `require`, a
/// first file probes whether the kernel grants a page at all.
fn stages(policy: &str) -> impl Iterator<Item = u32> {
    1..=(if policy == "require" { 4 } else { 3 })
}

fn another_server() -> Launch {
    Launch::ours()
        .model(&models::demo("20M", "Q8_0"))
        .hugepages("prefer")
}

fn require_is_robbed_of_its_pages(weights: Weights) {
    let need = weights.need();
    for stage in stages("require") {
        let pool = or_skip!(Pool::with(need));
        let traced = or_skip!(Traced::stopped_at_memfd(weights.require(), stage));
        let other = another_server().start();
        let stolen = smaps::hugetlb_bytes(other.pid()) / PAGE;
        assert!(stolen > 0, "\n{}", other.log());
        traced.go_on();
        let ended = traced.server.wait();
        assert_says(
            &ended,
            &["the model needs ", " are usable: free "],
            &["sysctl vm.nr_hugepages=", "--hugepage-policy prefer"],
        );
        // The total in the hint would have been enough, and is no larger.
        let hint = ended.line_with("hint: ");
        let total = hint.split_once("nr_hugepages=").expect("just seen").1;
        let total: u64 = total
            .split(',')
            .next()
            .and_then(|total| total.parse().ok())
            .expect("a number");
        assert!(
            total > pool.counts.total && total <= pool.counts.total + stolen,
            "{total} of {}, {stolen} stolen",
            pool.counts
        );
        assert_eq!(pool.taken(), stolen, "stage {stage}: all of ours are back");
        other.assert_answers();
        drop(other);
        pool.assert_all_back();
    }
}

#[test]
fn pages_that_another_process_takes_after_the_check_are_an_error_of_a_mapped_model() {
    require_is_robbed_of_its_pages(Mapped);
}

#[test]
fn pages_that_another_process_takes_after_the_check_are_an_error_of_a_repacked_model() {
    require_is_robbed_of_its_pages(Repacked);
}

fn prefer_is_robbed_of_its_pages(weights: Weights) {
    let need = weights.need();
    weights.plain_answer();
    for stage in stages("prefer") {
        let pool = or_skip!(Pool::with(need));
        let mut traced = or_skip!(Traced::stopped_at_memfd(weights.prefer(), stage));
        let other = another_server().start();
        let stolen = smaps::hugetlb_bytes(other.pid()) / PAGE;
        traced.go_on();
        traced.server.wait_until_ready();
        let pages = assert_serves(weights, &traced.server, &pool, stolen);
        assert_eq!(pages, need - stolen, "stage {stage}: all that were left");
        drop((traced, other));
        pool.assert_all_back();
    }
}

#[test]
fn prefer_without_the_pages_that_another_process_took_answers_the_same_from_a_mapping() {
    prefer_is_robbed_of_its_pages(Mapped);
}

#[test]
fn prefer_without_the_pages_that_another_process_took_answers_the_same_repacked() {
    prefer_is_robbed_of_its_pages(Repacked);
}

/// Uses one thread. With several, the kernel may refuse a page that precedes another thread's. It frees an unused reservation only at the
/// end of a file, so some pages would stay reserved until the server ends.
fn in_order(launch: Launch) -> Launch {
    launch.args(["--hugepage-threads", "1"])
}

/// The kernel checks this limit only at the page fault, where an unchecked touch raises SIGBUS.
#[test]
fn a_limit_that_falls_after_the_check_is_found_at_the_fault() {
    for weights in [Mapped, Repacked] {
        let need = weights.need();
        weights.plain_answer();
        let pool = or_skip!(Pool::with(need));
        let cgroup = or_skip!(Cgroup::with("max", need, Limit::Here));

        let launch = weights.require().in_cgroup(&cgroup.dir);
        let traced = or_skip!(Traced::stopped_at_memfd(launch, weights.file("require")));
        cgroup.set("max", need / 2);
        traced.go_on();
        let ended = traced.server.wait();
        assert!(
            cgroup.refusals() > 0,
            "no refusal at the fault\n{}",
            ended.log
        );
        assert_says(
            &ended,
            &["the model needs ", &format!("cgroup /{}", cgroup.name())],
            &[&format!("hugetlb.2MB.max of cgroup /{}", cgroup.name())],
        );
        pool.assert_all_back();

        cgroup.set("max", need);
        let launch = in_order(weights.prefer()).in_cgroup(&cgroup.dir);
        let mut traced = or_skip!(Traced::stopped_at_memfd(launch, weights.file("prefer")));
        cgroup.set("max", need / 2);
        traced.go_on();
        traced.server.wait_until_ready();
        let pages = assert_serves(weights, &traced.server, &pool, 0);
        assert_eq!(
            pages,
            need / 2,
            "the server uses every page up to the limit\n{}",
            traced.server.log()
        );
        drop(traced);
        pool.assert_all_back();
    }
}

/// The kernel may refuse for any reason: here each thread gets its first chunk, and nothing more.
#[test]
fn pages_refused_at_the_fault_while_all_counts_are_right_are_found() {
    const REFUSED: &str = "inject=madvise:error=EFAULT:when=2+";
    for weights in [Mapped, Repacked] {
        let need = weights.need();
        weights.plain_answer();
        let pool = or_skip!(Pool::with(need));
        let traced = or_skip!(Traced::spawn(weights.require(), "madvise", REFUSED));
        assert_says(
            &traced.server.wait(),
            &[
                "the model needs ",
                &format!("{need} seemed usable"),
                "refused at the page fault",
            ],
            &["--hugepage-policy prefer"],
        );
        pool.assert_all_back();

        let launch = in_order(weights.prefer());
        let mut traced = or_skip!(Traced::spawn(launch, "madvise", REFUSED));
        traced.server.wait_until_ready();
        let pages = assert_serves(weights, &traced.server, &pool, 0);
        assert!(
            0 < pages && pages < need,
            "{pages} of {need}\n{}",
            traced.server.log()
        );
        drop(traced);
        pool.assert_all_back();
    }
}

//
// sizes
//

#[test]
fn pages_of_1_gib_where_there_are_only_smaller_ones_are_an_error_with_a_hint() {
    let dir = Path::new("/sys/kernel/mm/hugepages/hugepages-1048576kB");
    match fs::read_to_string(dir.join("nr_hugepages")).map(|nr| nr.trim().to_owned()) {
        Ok(nr) if nr == "0" => {}
        Ok(nr) => return skip(format!("{nr} pages of 1 GiB exist")),
        Err(_) => return skip("this kernel has no pages of 1 GiB"),
    }
    let need = Mapped.need();
    Mapped.plain_answer();
    let pool = or_skip!(Pool::with(need));
    let ended = Mapped.require().args(["--hugepage-size", "1G"]).run();
    assert_says(
        &ended,
        // one for the weights, and one for all buffers
        &["needs 2 huge pages of 1 GiB", "only 0 are usable: free 0"],
        &[&format!("echo 2 > {}/nr_hugepages", dir.display())],
    );
    pool.assert_all_back();

    let server = Mapped.prefer().args(["--hugepage-size", "1G"]).start();
    assert_eq!(assert_serves(Mapped, &server, &pool, 0), 0);
    assert!(
        server.log().contains("0 of 2 huge pages of 1 GiB"),
        "no report of the shortage\n{}",
        server.log()
    );
}

#[test]
fn a_page_size_that_the_kernel_has_no_pool_of_is_an_error_that_names_those_it_has() {
    for weights in [Mapped, Repacked] {
        let need = weights.need();
        weights.plain_answer();
        let pool = or_skip!(Pool::with(need));
        let says = ["no pool of huge pages of 4 MiB; available sizes: ", "2 MiB"];
        let ended = weights.require().args(["--hugepage-size", "4M"]).run();
        assert_ends_with(1, &ended, &says, &["--hugepage-size auto"]);
        pool.assert_all_back();

        let server = weights.prefer().args(["--hugepage-size", "4M"]).start();
        assert_eq!(assert_serves(weights, &server, &pool, 0), 0);
        let log = server.log();
        let line = log.lines().find(|line| line.contains(says[0]));
        assert!(line.is_some_and(|line| line.contains(says[1])), "{log}");
        assert_eq!(Table::of(&log).huge_mib.to_bits(), 0.0_f64.to_bits());
    }
}

#[test]
fn surplus_pages_are_taken_to_the_last_one_and_go_back() {
    let need = Repacked.need();
    Repacked.plain_answer();
    let mut pool = or_skip!(Pool::with(0));
    let surplus = pool.counts.surplus;
    let takes = |server: &Server, pages| {
        assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, pages);
        assert_eq!(Counts::read().surplus, surplus + pages);
        assert_eq!(
            &answer(server),
            Repacked.plain_answer(),
            "\n{}",
            server.log()
        );
    };
    pool.set_overcommit(need);
    takes(&Repacked.require().start(), need);
    pool.assert_all_back();

    pool.set_overcommit(need - 1);
    takes(&Repacked.prefer().start(), need - 1);
    pool.assert_all_back();
    let ended = Repacked.require().run();
    assert_says(
        &ended,
        &[
            &format!("needs {need} huge pages"),
            &format!("overcommit {}", need - 1),
        ],
        &["sysctl vm.nr_hugepages="],
    );
    pool.assert_all_back();
}

//
// other limits
//

/// Limits the address space to `bytes`. All threads share one heap, because heaps per thread vary in size.
fn within(bytes: u64, launch: Launch) -> Launch {
    launch
        .env("MALLOC_ARENA_MAX", "1")
        .wrapped(["prlimit", &format!("--as={bytes}")])
}

#[test]
fn too_little_address_space_is_an_error_and_enough_is_enough() {
    for weights in [Mapped, Repacked] {
        let need = weights.need();
        weights.plain_answer();
        let pool = or_skip!(Pool::with(need));
        let launch = within(u64::MAX / 2, weights.require());
        let mut traced = or_skip!(Traced::stopped_at_memfd(launch, weights.file("require")));
        let mapped = smaps::status_bytes(traced.server.pid(), "VmSize");
        traced.go_on();
        traced.server.wait_until_ready();
        let peak = smaps::status_bytes(traced.server.pid(), "VmPeak");
        drop(traced);
        pool.assert_all_back();

        for policy in ["require", "prefer"] {
            // The address space lacks room for half of the weights.
            let launch = weights.launch().hugepages(policy);
            let ended = within(mapped - need * PAGE / 2, launch).run();
            assert_says(&ended, &["no address space for "], &["ulimit -v unlimited"]);
            pool.assert_all_back();

            // The address space fits the weights and little more, so the server may serve or fail.
            let launch = weights.launch().hugepages(policy);
            let mut server = within(mapped + 16 * PAGE, launch).spawn();
            if server.is_ready_before_it_ends() {
                assert_serves(weights, &server, &pool, 0);
                drop(server);
            } else {
                server.wait().assert_clean_failure();
            }
            pool.assert_all_back();

            let launch = weights.launch().hugepages(policy);
            let server = within(peak + 64 * PAGE, launch).start();
            assert_eq!(assert_serves(weights, &server, &pool, 0), need);
            drop(server);
            pool.assert_all_back();
        }
    }
}

/// A user without rights to the pool gets the same message and the same pages.
#[test]
fn a_user_without_rights_is_told_the_need_and_served_with_what_there_is() {
    if !is_root() {
        return skip("needs root to become another user");
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let anybody = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, mode).expect("the folder is ours");
    };
    anybody(dir.path(), 0o755);
    let path = models::copy_to(dir.path(), &models::demo("100M", "Q4_K"));
    anybody(&path, 0o644);
    let launch = |policy| {
        Launch::ours()
            .repacked_model(&path)
            .hugepages(policy)
            .under_uid(65534)
    };
    let need = Repacked.need();
    Repacked.plain_answer();
    let pool = or_skip!(Pool::with(need.saturating_sub(1)));
    assert_says(
        &launch("require").run(),
        &[&format!("needs {need} huge pages")],
        &["sysctl vm.nr_hugepages="],
    );
    pool.assert_all_back();
    let server = launch("prefer").start();
    assert_eq!(assert_serves(Repacked, &server, &pool, 0), need - 1);
}

//
// a context that does not fit
//

#[test]
fn a_context_that_does_not_fit_is_known_before_the_weights_are_read() {
    let context = ["--ctx-size", "16384"];
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = fs::canonicalize(dir.path()).expect("just made");
    // A copy, because other tests read the shared model.
    let model = models::copy_to(&path, &models::demo("100M", "Q8_0"));
    let launch = || Launch::ours().model(&model);
    let small = need::of(&launch());
    let large = need::of(&launch().args(context));
    let expected = answer(&launch().args(context).start());
    let pool = or_skip!(Pool::with(small));
    assert!(large > small + 64, "{large} pages for 32 times the context");

    let trace = path.join("trace");
    page_cache::drop_file(&model);
    let ended = launch()
        .hugepages("require")
        .args(context)
        .traced("read,pread64,readv,preadv,preadv2", &trace)
        .run();
    assert_says(
        &ended,
        &[
            &format!("needs {large} huge pages of 2 MiB"),
            &format!("only {small} are usable"),
        ],
        &["sysctl vm.nr_hugepages="],
    );
    pool.assert_all_back();
    // Upstream reads the header more than once: to measure, and again to load.
    let header = Gguf::read(&model).data;
    let read = bytes_read(&trace, &model);
    assert!(
        0 < read && read <= 4 * header + 1024 * 1024,
        "{read} bytes read, {header} in the header"
    );
    let cached = or_skip!(page_cache::cached_bytes(&model));
    assert!(
        cached <= header + PAGE,
        "a mapping brought {cached} bytes into the page cache"
    );

    let server = launch().hugepages("prefer").args(context).start();
    let table = Table::of(&server.log());
    assert!(
        table.mib("kv", "base") > 100.0,
        "ordinary memory: {table:?}"
    );
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, small);
    assert_eq!(pool.taken(), small);
    assert_eq!(answer(&server), expected);
    drop(server);
    pool.assert_all_back();
}

//
// ends in the middle
//

/// Ends the server at moments spread over the time from its start to its first answer.
fn ends_at_every_stage(weights: Weights) {
    let moments: u32 = if full() { 40 } else { 5 };
    let launch = weights.launch_of("300M").hugepages("require");
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let start = Instant::now();
    drop(launch.clone().start());
    let duration = start.elapsed();
    pool.assert_all_back();

    let mut in_the_middle = 0;
    for signal in [Signal::TERM, Signal::KILL] {
        for moment in 0..moments {
            let server = launch.clone().spawn();
            thread::sleep(duration * moment / (moments - 1));
            let taken = pool.taken();
            in_the_middle += u32::from(0 < taken && taken < need);
            let pid = server.pid();
            let start = Instant::now();
            let ended = server.stop(signal);
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{:?}",
                start.elapsed()
            );
            let by = ended.status.signal();
            // The signal kills a server whose handler is not yet, or no longer, installed.
            assert!(
                by.is_none() || by == Some(signal.as_raw()),
                "moment {moment}: {}\n{}",
                ended.status,
                ended.log
            );
            pool.assert_all_back();
            assert!(
                !Path::new(&format!("/proc/{pid}")).exists(),
                "nothing is left"
            );
        }
    }
    assert!(
        in_the_middle > 0 || !full(),
        "no moment was in the middle of the load"
    );
}

#[test]
fn a_mapped_model_can_be_ended_at_every_stage_of_its_load() {
    ends_at_every_stage(Mapped);
}

#[test]
fn a_repacked_model_can_be_ended_at_every_stage_of_its_load() {
    ends_at_every_stage(Repacked);
}

/// Makes the kernel write core dumps to the folder of the process.
struct CorePattern {
    _guardian: Option<Guardian>,
}

impl CorePattern {
    const PATH: &str = "/proc/sys/kernel/core_pattern";

    fn in_folder() -> Result<Self, String> {
        let before = fs::read_to_string(Self::PATH).map_err(|error| error.to_string())?;
        if before.trim() == "core" {
            return Ok(Self { _guardian: None });
        }
        fs::OpenOptions::new()
            .write(true)
            .open(Self::PATH)
            .map_err(|error| format!("no right to change {}: {error}", Self::PATH))?;
        let script = format!(
            "IFS= read -r before; cat; echo \"$before\" > {}",
            Self::PATH
        );
        let mut guardian = Guardian::start(&script, None);
        guardian.tell(before.trim_end());
        fs::write(Self::PATH, "core").expect("the setting is writable");
        Ok(Self {
            _guardian: Some(guardian),
        })
    }
}

#[test]
fn a_core_dump_has_none_of_the_model() {
    // Dumps with the default filter, and with one that includes everything.
    for weights in [Mapped, Repacked] {
        for filter in [None, Some("0x1ff")] {
            if filter.is_some() && weights == Repacked && !full() {
                continue;
            }
            // Stacks and heaps reserve more than 100 MiB of addresses, but touch little of them.
            let launch = weights.launch_of("1G").hugepages("require");
            let need = need::of(&launch);
            let _pool = or_skip!(Pool::with(need));
            let _pattern = or_skip!(CorePattern::in_folder());
            let dir = tempfile::tempdir().expect("a temporary folder can be made");
            let server = launch
                .wrapped(["sh", "-c", r#"cd "$1" && shift && exec "$@""#, "sh"])
                .wrapped([dir.path()])
                .wrapped(["prlimit", "--core=unlimited"])
                .start();
            assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
            if let Some(filter) = filter {
                let path = format!("/proc/{}/coredump_filter", server.pid());
                fs::write(path, filter).expect("the file is ours");
            }
            let ended = server.stop(Signal::ABORT);
            assert!(ended.status.core_dumped(), "{}", ended.status);
            let files = fs::read_dir(dir.path()).expect("the folder is ours");
            let dumps: Vec<_> = files
                .map(|entry| entry.expect("an entry").metadata().expect("a file"))
                .collect();
            let [dump] = &dumps[..] else {
                panic!("{dumps:?}")
            };
            let (size, on_disk) = (dump.len(), dump.blocks() * 512);
            println!("{weights:?} {filter:?}: {size} bytes, {on_disk} on disk");
            assert!(
                size < need * PAGE / 4 && on_disk < need * PAGE / 16,
                "{size} bytes, {on_disk} on disk of {need} pages"
            );
        }
    }
}

//
// fork
//

/// Forks a child that sleeps until it is killed.
fn fork_a_sleeper() -> Pid {
    // SAFETY: until it is killed the child only calls alarm(2) and pause(2), which are safe after a fork of one of many threads.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        loop {
            // SAFETY: these calls take no pointers.
            unsafe {
                libc::alarm(20);
                libc::pause();
            }
        }
    }
    Pid::from_raw(pid).expect("the system has processes left")
}

/// Not a test: the process that forks while it loads a model.
#[test]
#[ignore = "started by `a_fork_during_the_load_takes_nothing_along`"]
fn load_while_forking() {
    log_to(LogTarget::Nowhere);
    let path = models::demo("300M", "Q8_0");
    let params = ModelParams::default()
        .with_hugepages(HugePages::Require)
        .with_repack(false);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let model = Model::load(&path, &params);
            done.store(true, Ordering::Relaxed);
            let model = model.expect("the pool is large enough");
            println!("pages={}", smaps::hugetlb_bytes(std::process::id()) / PAGE);
            drop(model);
        });
        while !done.load(Ordering::Relaxed) {
            let child = fork_a_sleeper();
            let pid = child.as_raw_pid().cast_unsigned();
            let theirs = smaps::read(pid);
            // A child forked between a mapping and its MADV_DONTFORK inherits the mapping, but no page.
            let is_empty =
                |vma: &smaps::Vma| vma.size("Shared_Hugetlb") + vma.size("Private_Hugetlb") == 0;
            let huge = theirs.iter().filter(|vma| vma.is_huge() && !is_empty(vma));
            let huge: Vec<_> = huge.collect();
            println!("fork={} huge={huge:?}", smaps::hugetlb_bytes(pid) / PAGE);
            kill_process(child, Signal::KILL).expect("the child is ours");
            waitpid(Some(child), WaitOptions::empty()).expect("the child is ours");
        }
    });
    println!("after={}", smaps::hugetlb_bytes(std::process::id()) / PAGE);
}

#[test]
fn a_fork_during_the_load_takes_nothing_along() {
    let path = models::demo("300M", "Q8_0");
    let need = crate::support::gguf::pages(&path);
    let pool = or_skip!(Pool::with(need));
    let mut process = Command::new(env::current_exe().expect("the test has a path"))
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "shortage::load_while_forking",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary can be started");
    let output = BufReader::new(process.stdout.take().expect("piped"));
    let lines: Vec<_> = output.lines().map_while(Result::ok).collect();
    let status = process.wait().expect("the child is ours");
    let all = lines.join("\n");
    assert!(status.success(), "{all}");
    assert!(all.contains(&format!("pages={need}\n")), "{need}: {all}");
    assert!(all.contains("after=0"), "{all}");
    let forks: Vec<_> = lines.iter().filter(|line| line.contains("fork=")).collect();
    assert!(forks.len() > 3, "{all}");
    assert!(
        forks.iter().all(|fork| fork.contains("fork=0 huge=[]")),
        "{all}"
    );
    pool.assert_all_back();
}

/// Each reserves all its pages before the other counts them.
#[test]
fn of_two_starts_at_once_one_gets_all_its_pages() {
    for weights in [Mapped, Repacked] {
        let launch = weights.launch_of("100M").hugepages("require");
        let need = need::of(&launch);
        let pool = or_skip!(Pool::with(need + need / 2));
        for _ in 0..if full() { 30 } else { 5 } {
            let mut servers = [launch.clone().spawn(), launch.clone().spawn()];
            for server in &mut servers {
                let is_settled = || server.is_ready() || server.has_ended();
                assert!(wait_for(Duration::from_secs(60), is_settled));
            }
            let servers = servers.map(|mut server| (server.has_ended(), server));
            let (ended, ready): (Vec<_>, Vec<_>) =
                servers.into_iter().partition(|(has_ended, _)| *has_ended);
            assert_eq!(ready.len(), 1, "of two servers");
            for (_, server) in ended {
                let ended = server.wait();
                assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
                let said = format!("needs {need} huge pages of 2 MiB");
                assert!(ended.log.contains(&said), "{}", ended.log);
            }
            drop(ready);
            pool.assert_all_back();
        }
    }
}
