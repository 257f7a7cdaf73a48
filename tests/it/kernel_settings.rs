//! Settings and limits of the kernel that no count of pages shows.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::support::cgroup::{Cgroup, Limit};
use crate::support::guardian::Guardian;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::{models, need, or_skip, programs, wait_for};

fn launch() -> Launch {
    Launch::ours()
        .model(&models::demo("20M", "Q8_0"))
        .hugepages("require")
}

/// As in a container: the tree of cgroups begins at its own one, and limits above are out of sight.
#[test]
fn a_limit_above_the_cgroup_namespace_is_told_from_pages_that_others_took() {
    or_skip!(programs::found("unshare"));
    let need = need::of(&launch());
    let pool = or_skip!(Pool::with(need + 20));
    for (file, pages) in [("max", 0), ("rsvd.max", need / 2)] {
        let cgroup = or_skip!(Cgroup::with(file, pages, Limit::Above));
        for more in [&["--hugepage-plan"][..], &[]] {
            let launch = launch().args(more).in_cgroup(&cgroup.dir);
            let ended = launch.wrapped(["unshare", "--cgroup"]).run();
            assert_eq!(ended.status.code(), Some(3), "{file}\n{}", ended.log);
            for part in [
                "which cannot be seen from here",
                "hugetlb limit",
                &format!("{need} huge pages"),
                &format!("at least {} bytes", need * PAGE),
            ] {
                assert!(ended.log.contains(part), "{file}: {part}\n{}", ended.log);
            }
        }
        pool.assert_all_back();
    }
}

/// Puts back what it was told.
const PUT_BACK: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r mode kbytes ratio || exit 0
    while read -r _; do :; done
    echo "$mode" > /proc/sys/vm/overcommit_memory
    if [ "$kbytes" -gt 0 ]; then echo "$kbytes" > /proc/sys/vm/overcommit_kbytes
    else echo "$ratio" > /proc/sys/vm/overcommit_ratio; fi
"#;

fn setting(name: &str) -> Result<String, String> {
    let text = fs::read_to_string(format!("/proc/sys/vm/{name}"));
    Ok(text.map_err(|error| error.to_string())?.trim().to_owned())
}

fn answers(server: &Server) {
    server.complete("Once", &json!({ "temperature": 0, "n_predict": 2 }));
}

/// The kernel charges ordinary memory when it is mapped then, and huge pages never.
#[test]
#[ignore = "alone: make test-full, as other tests run short of memory meanwhile"]
fn with_strict_overcommit_buffers_on_huge_pages_take_no_ordinary_memory() {
    // Its KV cache and compute buffers take several times what is left for ordinary memory.
    let launch = Launch::ours()
        .model(&models::demo("300M", "Q8_0"))
        .hugepages("require")
        .args(["--ctx-size", "65536"]);
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let [mode, kbytes, ratio] = [
        or_skip!(setting("overcommit_memory")),
        or_skip!(setting("overcommit_kbytes")),
        or_skip!(setting("overcommit_ratio")),
    ];
    let mut guardian = Guardian::start(PUT_BACK, None);
    guardian.tell(&format!("{mode} {kbytes} {ratio}"));
    let meminfo = fs::read_to_string("/proc/meminfo").expect("proc(5)");
    let committed = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("Committed_AS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .expect("proc(5)");
    // Threads and the rest of the program need some.
    let left = 400_000;
    assert!(need * PAGE / 1024 > 2 * left, "it would prove nothing");
    or_skip!(
        fs::write(
            "/proc/sys/vm/overcommit_kbytes",
            (committed + left).to_string()
        )
        .map_err(|error| format!("no right to set overcommit_kbytes: {error}"))
    );
    fs::write("/proc/sys/vm/overcommit_memory", "2").expect("as before");
    let mut server = launch.spawn();
    let ready = wait_for(Duration::from_secs(60), || {
        server.is_ready() || server.has_ended()
    });
    let ready = ready && !server.has_ended();
    drop(guardian);
    assert!(ready, "{}", server.log());
    answers(&server);
    drop(server);
    pool.assert_all_back();
}
