//! The peak memory of a load: the engine repacks in pieces, and never keeps weights in memory twice.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::cgroup::MemoryCgroup;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::{full, http, models, need, or_skip, page_cache, plan, smaps};

/// Memory beside the model: the program, its read buffers, and the model's tables.
const BESIDE: u64 = 256 * 1024 * 1024;

fn size() -> &'static str {
    if full() { "1G" } else { "100M" }
}

/// `VmHWM` and `HugetlbPages`, in bytes. The resident set does not include huge pages.
fn resident_and_huge(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    };
    Some(bytes("VmHWM:")? + bytes("HugetlbPages:")?)
}

/// `RssAnon` in bytes. It does not include huge pages.
fn anonymous(pid: u32) -> u64 {
    smaps::status_bytes(pid, "RssAnon")
}

/// Starts a server and measures its peak memory until it is ready.
fn peak(launch: Launch) -> (Server, u64) {
    let mut server = launch.spawn();
    let pid = server.pid();
    let sampler = thread::spawn(move || {
        let mut peak = 0;
        // The server fills its last page before it is ready, so the samples include the peak.
        while let Some(now) = resident_and_huge(pid) {
            peak = peak.max(now);
            if is_listening(pid) {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    server.wait_until_ready();
    let peak = sampler.join().expect("the thread only reads");
    let now = resident_and_huge(pid).expect("the process is alive");
    (server, peak.max(now))
}

/// Whether the log reports the loaded model. The server opens its port before the load, so an open port proves nothing.
fn is_listening(pid: u32) -> bool {
    let Ok(log) = fs::read_link(format!("/proc/{pid}/fd/2")) else {
        return true;
    };
    fs::read_to_string(log).is_ok_and(|log| log.contains("model loaded"))
}

#[test]
fn a_repacked_model_is_never_in_memory_twice() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = models::copy_to(dir.path(), &models::demo(size(), "Q4_K"));
    let launch = Launch::ours().repacked_model(&model).hugepages("require");
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    page_cache::drop_file(&model);
    let (server, most) = peak(launch);
    // All memory that the need counts: repacked and other weights, KV cache, compute buffers.
    let limit = need * PAGE + BESIDE;
    assert!(
        most <= limit,
        "peak of {} MiB, limit {} MiB\n{}",
        most >> 20,
        limit >> 20,
        server.log()
    );
    println!("{} MiB at most, limit {} MiB", most >> 20, limit >> 20);

    // The page cache must not hold a copy either.
    let cached = or_skip!(page_cache::cached_bytes(&model));
    let bytes = fs::metadata(&model).expect("the model exists").len();
    assert!(
        cached <= bytes / 100,
        "{cached} of {bytes} bytes are in the page cache"
    );
    println!("{cached} of {bytes} bytes in the page cache");
    drop(server);
    pool.assert_all_back();
}

/// A test of the test: stock keeps the model twice, in the page cache and repacked, and the measurement shows it.
#[test]
fn stock_has_a_repacked_model_in_memory_twice() {
    let model = models::demo(size(), "Q4_K");
    let (_server, most) = peak(or_skip!(Launch::stock()).repacked_model(&model));
    let bytes = fs::metadata(&model).expect("the model exists").len();
    assert!(most >= 2 * bytes, "peak of {} MiB", most >> 20);
}

/// Upstream's limit of 8 GiB is for a machine whose memory is not in a pool.
#[test]
fn the_prompt_cache_fits_into_what_the_memory_limit_leaves() {
    const LINE: &str = "the prompt cache may use ";
    let launch = Launch::ours().model(&models::demo("20M", "Q8_0"));
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let cgroup = or_skip!(MemoryCgroup::with_limit(3 << 30));
    let launch = launch.in_cgroup(&cgroup.dir);
    let server = launch.clone().hugepages("require").start();
    let log = server.log();
    let (_, rest) = log.split_once(LINE).unwrap_or_else(|| panic!("{log}"));
    let mib: u64 = rest
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{rest}"));
    // The limit less 1 GiB, and less what the server has.
    assert!((1024..=2048).contains(&mib), "{log}");
    server.assert_answers();
    drop(server);
    for unlimited in [
        launch.clone(),
        launch.hugepages("require").args(["--cache-ram", "100"]),
    ] {
        let server = unlimited.start();
        assert!(!server.log().contains(LINE), "{}", server.log());
    }
    pool.assert_all_back();
}

/// Sends a prompt of 256 tokens that no other number shares. False if the server has died.
fn ask(server: &Server, number: u32) -> bool {
    let mut prompt: Vec<u32> = (0..256).map(|at| 50 + at % 100).collect();
    (prompt[0], prompt[1]) = (50 + number % 100, 50 + number / 100);
    let body = json!({ "prompt": prompt, "n_predict": 1, "temperature": 0 });
    match http::try_post(&server.url("/completion"), &body) {
        Ok((status, answer)) => {
            assert_eq!(status, 200, "{answer}\n{}", server.log());
            true
        }
        Err(_) => false,
    }
}

/// Two servers answer prompts that each of them would save, with so much memory for both beside what they have at their start. Returns their
/// logs, or none if the kernel killed one of them.
fn ask_both(launch: &Launch, room: u64, n_prompts: u32) -> Result<Option<String>, String> {
    let alone = launch.clone().start();
    ask(&alone, 0);
    let at_start = anonymous(alone.pid());
    drop(alone);

    let cgroup = MemoryCgroup::with_limit(2 * at_start + room)?;
    let start = || launch.clone().in_cgroup(&cgroup.dir).start();
    let servers = [start(), start()];
    let survive = (0..n_prompts).all(|i| servers.iter().all(|server| ask(server, i)));
    let logs = servers.map(|server| server.log()).concat();
    Ok(survive.then_some(logs))
}

/// When a server starts, its limit for saved prompts is right. But two servers reach the limit of their memory together.
#[test]
fn servers_that_save_prompts_leave_each_other_memory() {
    let (room, reserve, n_prompts) = if full() {
        (2 << 30, "1024", 500)
    } else {
        (96 << 20, "32", 16)
    };
    let model = models::demo("100M", "Q8_0");
    // 5.5 MiB for each prompt
    let args = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"];
    let launch = |launch: Launch| {
        let launch = launch.model(&model).args(args);
        launch.args(["--fit-target", reserve])
    };
    let ours = launch(Launch::ours());
    let pool = or_skip!(Pool::with(2 * need::of(&ours)));

    // A test of the test. A server that maps its model would read it again and again before the kernel kills it.
    let stock = launch(or_skip!(Launch::stock())).args(["--load-mode", "none"]);
    let killed = or_skip!(ask_both(&stock, room, n_prompts)).is_none();
    assert!(killed, "stock has enough memory");

    let log = or_skip!(ask_both(&ours.hugepages("require"), room, n_prompts));
    let log = log.expect("no server is killed");
    let is_dropped = log.contains("the oldest saved prompt of ");
    assert!(is_dropped, "no server asked for room: {log}");
    pool.assert_all_back();
}

/// The kernel grants ordinary memory that it does not have, and kills who uses it. So the server counts before it reads.
#[test]
fn buffers_that_no_memory_can_hold_are_refused_before_the_load() {
    let model = models::demo("300M", "Q4_K");
    let bytes = fs::metadata(&model).expect("the model exists").len();
    let launch = Launch::ours().repacked_model(&model);
    let need = need::of(&launch);
    let cgroup = or_skip!(MemoryCgroup::with_limit(bytes / 2));
    let launch = launch.in_cgroup(&cgroup.dir);

    // The kernel kills stock. A test of the test. A server that maps its model would read it again and again before that.
    let stock = or_skip!(Launch::stock())
        .repacked_model(&model)
        .args(["--load-mode", "none"])
        .in_cgroup(&cgroup.dir)
        .run();
    assert_eq!(stock.status.signal(), Some(9), "{stock:?}");

    let mut pool = or_skip!(Pool::with(0));
    let short = launch.clone().hugepages("prefer").run();
    assert_eq!(short.status.code(), Some(3), "{short:?}");
    let text = " of ordinary memory are available";
    let line = short.line_with(text);
    assert!(line.contains("repacked"), "{line}");

    let plan = launch.clone().hugepages("prefer").args(["--hugepage-plan"]);
    let plan = plan.run();
    assert_eq!(plan.status.code(), Some(3), "{plan:?}");
    let line = plan.line_with(text);
    assert!(line.contains("repacked"), "{line}");

    // With pages for the weights, the rest fits.
    pool.set(need);
    launch.hugepages("prefer").start().assert_answers();
    pool.assert_all_back();
}

/// What the plan says of ordinary memory is what the server has. A compute buffer is in memory as far as prompts have used it.
#[test]
fn the_plan_counts_ordinary_memory() {
    let model = models::demo("100M", "Q4_K");
    let launch = Launch::ours().repacked_model(&model);
    let need = need::of(&launch);
    let mut pool = or_skip!(Pool::with(need));
    for (policy, pages) in [("require", need), ("prefer", need / 4)] {
        pool.set(pages);
        let launch = launch.clone().hugepages(policy);
        let plan = plan::of(&launch);
        let memory = |name: &str| plan["memory"][name].as_u64().expect("a number");
        let is_ordinary = policy == "prefer";
        let compute: u64 = plan["needs"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|need| is_ordinary && need["kind"] == "compute")
            .map(|need| need["bytes"].as_u64().expect("a number"))
            .sum();
        let planned = memory("process") + memory("buffers");
        let server = launch.start();
        server.assert_answers();
        let used = anonymous(server.pid());
        // A server also has threads, slots and connections: 1 to 3 MB, whatever the size of the model.
        let least = (planned - compute) * 95 / 100;
        let most = planned * 105 / 100 + (4 << 20);
        assert!(
            (least..=most).contains(&used),
            "{policy}: planned {planned}, used {used}: {plan}"
        );
        assert!(memory("available") > used, "{plan}");
        println!("{policy}: planned {planned}, used {used}");
        drop(server);
    }
    pool.assert_all_back();
}
