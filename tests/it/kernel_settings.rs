//! Settings and limits of the kernel that are rare on a developer's machine and common elsewhere, and other processes that take the same
//! pages or the same port.
//! Lives here: a server's behaviour under them. Not here: limits that a server can see (`shortage`).

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::equality::answers;
use crate::support::cgroup::{Cgroup, Limit};
use crate::support::device::Device;
use crate::support::load::Load;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::settings::overcommit;
use crate::support::store::Store;
use crate::support::thief::Taken;
use crate::support::weights::BOTH;
use crate::support::weights::Weights::Mapped;
use crate::support::{models, need, or_skip, page_cache, plan, programs, smaps, wait_for};

const MIB: u64 = 1 << 20;

/// More pages than any model here needs with a short context.
const PAGES: u64 = 260;

fn pages_of(launch: &Launch) -> u64 {
    plan::pages_by_kind(&plan::of(launch)).values().sum()
}

fn text(output: &Output) -> String {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{stdout}{stderr}")
}

//
// ordinary memory
//

/// Ordinary memory for other processes, because the setting covers the whole machine and builds run beside tests.
const LEFT: u64 = 2 << 30;

/// A context whose cache in huge pages is larger than `LEFT`.
const CONTEXT: [&str; 2] = ["--ctx-size", "262144"];

#[test]
fn strict_overcommit_does_not_charge_huge_pages_as_ordinary_memory() {
    for weights in BOTH {
        let launch = weights.launch().args(CONTEXT).hugepages("require");
        let need = need::of(&weights.launch().args(CONTEXT));
        let pool = or_skip!(Pool::with(need));
        assert!(need * PAGE > LEFT + 512 * MIB || need == 0, "{need} pages");
        let before = or_skip!(overcommit::values());
        let settings = or_skip!(overcommit::strict(LEFT));
        let mut server = launch.spawn();
        let is_ready = server.is_ready_before_it_ends();
        // Restores the setting early, because other processes need memory.
        drop(settings);
        assert_eq!(overcommit::values().as_ref(), Ok(&before));
        assert!(
            is_ready,
            "{weights:?}: {need} pages are free\n{}",
            server.log()
        );
        assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
        server.assert_answers();
        drop(server);
        pool.assert_all_back();
    }
}

#[test]
fn an_address_space_that_is_too_small_is_an_error_that_names_ulimit() {
    let context = ["--ctx-size", "65536"];
    for weights in BOTH {
        let short = weights.launch().env("MALLOC_ARENA_MAX", "1");
        let needs = [need::of(&short), need::of(&short.clone().args(context))];
        let store = or_skip!(Store::with(needs[1] + PAGES));
        let server = short.clone().hugepages("require").start();
        let peak = smaps::status_bytes(server.pid(), "VmPeak");
        drop(server);
        store.pool.assert_all_back();
        for policy in ["require", "prefer"] {
            for args in [&[][..], &["--hugepage-store", store.arg()]] {
                let launch = short.clone().args(context).hugepages(policy).args(args);
                // Room for a short context and a tenth of the cache of a long one.
                let room = peak + (needs[1] - needs[0]) * PAGE / 10;
                let ended = launch.wrapped(["prlimit", &format!("--as={room}")]).run();
                ended.assert_clean_failure();
                assert_eq!(
                    ended.status.code(),
                    Some(3),
                    "more address space would help\n{}",
                    ended.log
                );
                let hint = ended.line_with("hint: ");
                assert!(hint.contains("ulimit -v"), "{hint}");
                store.assert_only_files_hold_pages();
                store.empty();
                store.pool.assert_all_back();
            }
        }
    }
}

/// The kernel would end the process with SIGXFSZ.
#[test]
fn a_limit_for_the_size_of_files_is_named_and_ends_no_server() {
    const LIMIT: &str = "--fsize=3000000";
    for weights in BOTH {
        let launch = weights.launch();
        let need = pages_of(&launch);
        let store = or_skip!(Store::with(need + PAGES));
        let stored = launch.clone().args(["--hugepage-store", store.arg()]);
        for launch in [&launch, &stored] {
            let limited = || launch.clone().wrapped(["prlimit", LIMIT]);
            let ended = limited().hugepages("require").run();
            ended.assert_clean_failure();
            let hint = ended.line_with("hint: ");
            assert!(hint.contains("ulimit -f"), "{hint}");
            assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
            store.assert_only_files_hold_pages();
            store.empty();
            let server = limited().hugepages("prefer").start();
            server.assert_answers();
            drop(server);
            store.empty();
            store.pool.assert_all_back();
        }
        let mut tool = Command::new("prlimit");
        tool.arg(LIMIT).arg(programs::hugepages()).arg("plan");
        let plan = tool.arg("--").args(launch.arguments()).output();
        let plan = text(&plan.expect("prlimit is part of util-linux"));
        assert!(plan.contains("ulimit -f"), "{plan}");
    }
}

/// The kernel never swaps a huge page, and does not count it. Root without `CAP_IPC_LOCK` has the limit of other users.
#[test]
fn a_limit_for_locked_memory_does_not_count_huge_pages() {
    const WARNING: &str = "failed to mlock";
    // Repacked weights are in no host buffer, and upstream locks only these.
    for mode in ["mmap+mlock", "mlock"] {
        let launch = Mapped
            .launch()
            .args(["--load-mode", mode])
            .wrapped(["setpriv", "--bounding-set", "-ipc_lock"])
            .wrapped(["prlimit", "--memlock=8388608:8388608"]);
        let pool = or_skip!(Pool::with(PAGES));
        let without = launch.clone().start();
        assert!(without.log().contains(WARNING), "{}", without.log());
        drop(without);
        let server = launch.hugepages("require").start();
        assert!(!server.log().contains(WARNING), "{}", server.log());
        server.assert_answers();
        drop(server);
        pool.assert_all_back();
    }
}

/// With this setting glibc takes huge pages for the heap, from the same pool.
#[test]
fn pages_that_malloc_has_taken_are_explained_by_its_setting() {
    for weights in BOTH {
        let need = need::of(&weights.launch());
        let pool = or_skip!(Pool::with(need));
        let mut server = weights
            .launch()
            .hugepages("require")
            .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
            .spawn();
        if server.is_ready_before_it_ends() {
            assert_eq!(
                smaps::hugetlb_bytes(server.pid()) / PAGE,
                need,
                "malloc took none of the pages"
            );
            continue;
        }
        let ended = server.wait();
        ended.assert_clean_failure();
        assert_eq!(ended.status.code(), Some(3), "\n{}", ended.log);
        assert!(ended.log.contains("GLIBC_TUNABLES"), "\n{}", ended.log);
        assert!(!ended.log.contains("another process"), "\n{}", ended.log);
        pool.assert_all_back();
    }
}

//
// the pool and its limits
//

#[test]
fn a_pool_that_grows_by_itself_holds_a_model_and_a_store() {
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let mut store = or_skip!(Store::with(0));
        let launch = weights
            .launch()
            .hugepages("require")
            .args(["--hugepage-store", store.arg()]);
        let need = pages_of(&launch);
        let surplus = store.pool.counts.surplus;
        store.pool.set_overcommit(surplus + need);
        assert_eq!(plan::of(&launch)["fits"], true);
        let server = launch.clone().start();
        assert_eq!(Counts::read().surplus, surplus + need);
        assert_eq!(&answers(&server), expected, "\n{}", server.log());
        drop(server);
        assert!(
            wait_for(Duration::from_secs(5), || Counts::read().surplus
                == surplus + store.pages()),
            "files hold {} pages, {}",
            store.pages(),
            Counts::read()
        );
        let server = launch.start();
        let said = Load::of(&server);
        assert!(said.attached > 80 * MIB && said.read() < MIB, "{said:?}");
        assert_eq!(&answers(&server), expected, "\n{}", server.log());
        drop(server);
        store.empty();
        store.pool.assert_all_back();
    }
}

/// As in a container: the cgroup namespace starts at the program's cgroup, and no other hierarchy is visible.
const IN_NAMESPACE: &str = r#"
    mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    umount -l "$mount" && mount -t cgroup2 none "$mount" || exit 99
    grep -q '^0::/$' /proc/self/cgroup || exit 98
    exec "$@"
"#;

/// A wrapper that runs a program in a cgroup whose parent it cannot see.
fn without_a_view(cgroup: &Cgroup) -> Vec<OsString> {
    let enter = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;
    let mut line: Vec<OsString> = ["sh", "-c", enter, "sh"].map(OsString::from).into();
    line.push(cgroup.dir.clone().into());
    line.extend(["unshare", "--cgroup", "--mount", "--propagation", "private"].map(OsString::from));
    line.extend(["sh", "-c", IN_NAMESPACE, "sh"].map(OsString::from));
    line
}

fn run_without_a_view(cgroup: &Cgroup, command: &Command) -> Output {
    let line = without_a_view(cgroup);
    let mut wrapped = Command::new(&line[0]);
    wrapped.args(&line[1..]).arg(command.get_program());
    wrapped.args(command.get_args()).stdin(Stdio::null());
    wrapped.output().expect("sh is installed")
}

fn beyond_a_limit_without_a_view(file: &str) {
    // Collects all failures, because each one concerns another program.
    let mut failures = Vec::new();
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let need = need::of(&weights.launch());
        let pool = or_skip!(Pool::with(need));
        // A limit below the size of the weights.
        let cgroup = or_skip!(Cgroup::with(file, need / 4, Limit::Above));
        let launch = |policy| {
            weights
                .launch()
                .hugepages(policy)
                .wrapped(without_a_view(&cgroup))
        };
        let ended = launch("require").run();
        ended.assert_clean_failure();
        let mut check = |is_right: bool, what: &str, log: &str| {
            if !is_right {
                failures.push(format!("{weights:?}, {file}: {what}\n{log}"));
            }
        };
        let code = ended.status.code();
        check(
            code == Some(3),
            &format!("the load ends with {code:?}"),
            &ended.log,
        );
        let blames = ended.log.contains("another process");
        check(!blames, "no other process took a page", &ended.log);
        check(ended.log.contains("limit"), "no limit is named", &ended.log);
        pool.assert_all_back();

        let mut doctor = Command::new(programs::hugepages());
        doctor
            .args(["doctor", "--"])
            .args(weights.launch().arguments());
        for (name, command) in [
            ("plan", plan::command(&weights.launch())),
            ("doctor", doctor),
        ] {
            let output = run_without_a_view(&cgroup, &command);
            let (code, said) = (output.status.code(), text(&output));
            check(
                code == Some(3),
                &format!("{name} ends with {code:?}"),
                &said,
            );
            check(
                said.contains("limit"),
                &format!("{name} names no limit"),
                &said,
            );
            pool.assert_all_back();
        }

        let server = launch("prefer").start();
        let pages = smaps::hugetlb_bytes(server.pid()) / PAGE;
        check(pages <= need / 4, &format!("{pages} pages"), &server.log());
        assert_eq!(&answers(&server), expected, "\n{}", server.log());
        drop(server);
        pool.assert_all_back();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n---\n"));
}

#[test]
fn a_limit_on_pages_that_cannot_be_seen_is_found_by_trying_and_named() {
    beyond_a_limit_without_a_view("max");
}

#[test]
fn a_limit_on_reservations_that_cannot_be_seen_is_found_by_trying_and_named() {
    beyond_a_limit_without_a_view("rsvd.max");
}

/// Kubernetes uses long cgroup names, and the hint repeats the name for each limit.
#[test]
fn a_long_hint_has_no_number_that_is_cut() {
    let need = need::of(&Mapped.launch());
    let pool = or_skip!(Pool::with(need));
    for length in (176..=248).step_by(4) {
        let start = format!("llama-hugepages-test-{}-", std::process::id());
        let name = format!("{start}{}", "x".repeat(length - start.len()));
        let cgroup = or_skip!(Cgroup::named(&name, "max", need - 1, Limit::Here));
        cgroup.set("rsvd.max", need - 1);
        let launch = Mapped.launch().hugepages("require");
        let ended = launch.in_cgroup(&cgroup.dir).run();
        ended.assert_clean_failure();
        let hint = ended.line_with("hint: ");
        let wanted = format!("/{name} to ");
        let numbers: Vec<&str> = hint
            .split(&wanted)
            .skip(1)
            .map(|rest| {
                rest.split(|c: char| !c.is_ascii_digit())
                    .next()
                    .unwrap_or_default()
            })
            .collect();
        assert!(!numbers.is_empty(), "no limit in: {hint}");
        let expected = (need * PAGE).to_string();
        for number in numbers {
            assert_eq!(number, expected, "{length} letters: {hint}");
        }
    }
    pool.assert_all_back();
}

//
// other processes
//

/// Bytes that a server fetched from storage.
fn bytes_fetched(server: &Server) -> u64 {
    let Ok(io) = fs::read_to_string(format!("/proc/{}/io", server.pid())) else {
        return 0;
    };
    let value = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// The device is slow, so the load is still reading when another process takes pages.
#[test]
fn require_holds_all_it_counted_before_it_reads() {
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let demo = weights.demo();
        let need = need::of(&weights.launch());
        let size = fs::metadata(&demo).expect("the model exists").len();
        let mut device = or_skip!(Device::with(size));
        let model = models::copy_to(&device.path(), &demo);
        page_cache::drop_file(&model);
        let pool = or_skip!(Pool::with(need));
        or_skip!(device.throttle(32 * MIB));
        let mut server = weights
            .with(Launch::ours(), &model)
            .hugepages("require")
            .spawn();
        let has_begun = wait_for(Duration::from_secs(60), || {
            server.has_ended() || bytes_fetched(&server) > 16 * MIB
        });
        assert!(has_begun && !server.has_ended(), "\n{}", server.log());
        let fetched = bytes_fetched(&server);
        assert!(fetched < size - size / 4, "{fetched} of {size}: too late");
        // Takes every page that becomes free before the server answers.
        let mut taken = Vec::new();
        let is_over = wait_for(Duration::from_secs(120), || {
            taken.extend(Taken::all());
            server.has_ended() || server.is_ready()
        });
        let pages: u64 = taken.iter().map(Taken::pages).sum();
        assert!(
            is_over && !server.has_ended(),
            "{weights:?}: another process took {pages} of {need} pages\n{}",
            server.log()
        );
        assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
        assert_eq!(&answers(&server), expected);
        drop((server, taken));
        pool.assert_all_back();
    }
}

#[test]
fn a_store_and_an_empty_pool_are_3_with_the_need() {
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let store = or_skip!(Store::with(0));
        let launch = |policy| {
            let launch = weights.launch().hugepages(policy);
            launch.args(["--hugepage-store", store.arg()])
        };
        let planned = pages_of(&launch("require"));
        let ended = launch("require").run();
        ended.assert_clean_failure();
        let code = ended.status.code();
        assert_eq!(code, Some(3), "{weights:?}\n{}", ended.log);
        assert_eq!(need::told_in(&ended.log), planned, "{weights:?}");
        let hint = ended.line_with("hint: ");
        assert!(hint.contains("vm.nr_hugepages="), "{hint}");
        assert_eq!(store.names(), [""; 0], "{weights:?}");

        let server = launch("prefer").start();
        assert_eq!(&answers(&server), expected, "\n{}", server.log());
        drop(server);
        store.assert_only_files_hold_pages();
    }
}

/// A server that only fills a store needs no port.
#[test]
fn a_store_is_filled_while_another_server_has_the_port() {
    let other = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = other.local_addr().expect("bound").port().to_string();
    for weights in BOTH {
        let store = or_skip!(Store::with(PAGES));
        let launch = weights.launch().hugepages("require").args([
            "--hugepage-store",
            store.arg(),
            "--hugepage-load",
        ]);
        let mut server = Command::new(launch.program());
        server.args(launch.arguments()).args(["--port", &port]);
        let output = server
            .stdin(Stdio::null())
            .output()
            .expect("the server can be started");
        let filled = store.pages();
        let said = text(&output);
        store.empty();

        // The tool must not need the servers' default port.
        let _default = TcpListener::bind(("127.0.0.1", 8080));
        let mut tool = Command::new(programs::hugepages());
        tool.args(["store", "load", "--store", store.arg()])
            .arg(weights.demo());
        if weights == Mapped {
            tool.args(["--", "--no-repack"]);
        }
        let loaded = tool
            .stdin(Stdio::null())
            .output()
            .expect("the tool can be started");
        assert_eq!(
            loaded.status.code(),
            Some(0),
            "{weights:?}: {}",
            text(&loaded)
        );
        assert!(store.pages() > 30, "{weights:?}: {} pages", store.pages());

        assert_eq!(output.status.code(), Some(0), "{weights:?}: {said}");
        assert!(filled > 30, "{weights:?}: {filled} pages");
        store.empty();
        store.pool.assert_all_back();
    }
}
