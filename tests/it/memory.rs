//! How much memory a load takes at most: what is repacked is read in pieces, and never lies in memory twice.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::{full, models, need, or_skip, page_cache};

/// The program itself, what it reads with, and the tables of the model.
const BESIDE: u64 = 256 * 1024 * 1024;

fn size() -> &'static str {
    if full() { "1G" } else { "100M" }
}

/// `VmHWM` and `HugetlbPages`, in bytes: what is on huge pages is not part of the resident set.
fn resident_and_huge(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    };
    Some(bytes("VmHWM:")? + bytes("HugetlbPages:")?)
}

/// The most that a server had until it was ready.
fn peak(launch: Launch) -> (Server, u64) {
    let mut server = launch.spawn();
    let pid = server.pid();
    let sampler = thread::spawn(move || {
        let mut peak = 0;
        // It is ready some time after the last page was filled: what it needs is there then.
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
    let peak = sampler.join().expect("it only reads");
    let now = resident_and_huge(pid).expect("it is alive");
    (server, peak.max(now))
}

/// Whether its log says so: the port is open before the model is loaded.
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
    // All that is counted before the load: repacked and other weights, KV cache, compute buffers.
    let limit = need * PAGE + BESIDE;
    assert!(
        most <= limit,
        "{} MiB at most, {} MiB would do\n{}",
        most >> 20,
        limit >> 20,
        server.log()
    );
    println!("{} MiB at most, limit {} MiB", most >> 20, limit >> 20);

    // And not in the page cache either.
    let cached = or_skip!(page_cache::cached_bytes(&model));
    let bytes = fs::metadata(&model).expect("it is there").len();
    assert!(
        cached <= bytes / 100,
        "{cached} of {bytes} bytes are in the page cache"
    );
    println!("{cached} of {bytes} bytes in the page cache");
    drop(server);
    pool.assert_all_back();
}

/// A test of the test: stock has the model in the page cache and repacked, which is what is measured.
#[test]
fn stock_has_a_repacked_model_in_memory_twice() {
    let model = models::demo(size(), "Q4_K");
    let (_server, most) = peak(or_skip!(Launch::stock()).repacked_model(&model));
    let bytes = fs::metadata(&model).expect("it is there").len();
    assert!(most >= 2 * bytes, "{} MiB at most", most >> 20);
}
