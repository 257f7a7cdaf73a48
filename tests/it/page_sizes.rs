//! Pools of 1 GiB alone, and pools of both sizes: which pages hold what, and that buffers share a page.
//! Lives here: whole servers. Not here: the choice of pages on other machines, which `tests/engine/` checks on made-up ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::equality::answers;
use crate::support::gguf::Gguf;
use crate::support::pool::{LARGE_PAGE, PAGE, Pool};
use crate::support::server::{Ended, Launch, Server};
use crate::support::table::Table;
use crate::support::trace::bytes_read;
use crate::support::{full, models, need, or_skip, plan, smaps, store};

const MIB: u64 = 1 << 20;

/// Its KV cache has a quarter of a page of 1 GiB.
const CONTEXT: [&str; 3] = ["--ctx-size", "16384", "--no-warmup"];

fn model(kind: &str) -> PathBuf {
    models::demo_with("100M", kind, &["--context", "16384"])
}

/// A server with a large context. The default may repack the weights.
fn launch(launch: Launch, kind: &str) -> Launch {
    launch.repacked_model(&model(kind)).args(CONTEXT)
}

/// Pages by kind and size.
type Pages = BTreeMap<(String, u64), u64>;

fn planned(plan: &Value) -> Pages {
    let mut pages = Pages::new();
    for need in plan["needs"].as_array().expect("a list") {
        let number = |field: &str| need[field].as_u64().expect("a number");
        let kind = need["kind"].as_str().expect("a name").to_owned();
        *pages.entry((kind, number("page_size"))).or_default() += number("pages");
    }
    pages.retain(|_, pages| *pages > 0);
    pages
}

fn served(table: &Table) -> Pages {
    let size = |on: &str| match on {
        "2M" => PAGE,
        "1G" => LARGE_PAGE,
        _ => 0,
    };
    let rows = table.rows.iter().filter(|row| row.pages > 0);
    rows.map(|row| ((row.kind.clone(), size(&row.on)), row.pages))
        .collect()
}

fn bytes(pages: &Pages) -> u64 {
    pages.iter().map(|((_, size), pages)| size * pages).sum()
}

fn count(pages: &Pages, of_size: u64) -> u64 {
    let of_size = pages.iter().filter(|((_, size), _)| *size == of_size);
    of_size.map(|(_, pages)| pages).sum()
}

/// Asserts that the server has exactly the planned pages, and nothing on ordinary memory.
fn assert_is_as_planned(server: &Server, plan: &Value) {
    let table = Table::of(&server.log());
    assert_eq!(served(&table), planned(plan), "{plan}\n{table:?}");
    let held = smaps::hugetlb_bytes(server.pid());
    assert_eq!(held, bytes(&planned(plan)), "{plan}");
    assert!(table.percent >= 99.0, "{table:?}");
    let is_ordinary = |on: &str| on == "base" || on == "file" || on == "thp";
    assert!(
        !table.rows.iter().any(|row| is_ordinary(&row.on)),
        "{table:?}"
    );
}

/// Asserts that a server without enough pages ends with 3 before it reads a tensor.
fn assert_refused(launch: Launch, kind: &str, cause: &str) -> Ended {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let trace = dir.path().join("trace");
    let path = std::fs::canonicalize(model(kind)).expect("the model exists");
    let header = Gguf::read(&path).data;
    let ended = launch
        .hugepages("require")
        .traced("read,pread64,readv,preadv,preadv2", &trace)
        .run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains(cause), "no `{cause}`\n{}", ended.log);
    let read = bytes_read(&trace, &path);
    // Upstream reads the header more than once.
    assert!(read <= 8 * (header + MIB), "{read} bytes\n{}", ended.log);
    ended
}

/// Bytes of the planned pages that hold no tensor.
fn waste(plan: &Value, page_size: u64) -> u64 {
    let pools = plan["pools"].as_array().expect("a list").iter();
    let of_size = pools.filter(|pool| pool["page_size"] == page_size);
    of_size
        .map(|pool| pool["waste_bytes"].as_u64().expect("a number"))
        .sum()
}

/// The weights are on one page of 1 GiB, or in the range of the buffers if the server repacks them. KV cache and compute buffer share a
/// page.
fn on_1_gib_alone(kind: &str, large_pages: u64) {
    let stock = launch(or_skip!(Launch::stock()), kind).start();
    let expected = answers(&stock);
    drop(stock);
    let mut pool = or_skip!(Pool::with(0));
    for size in ["auto", "1G"] {
        let launch = launch(Launch::ours(), kind).args(["--hugepage-size", size]);
        or_skip!(pool.set_large(large_pages));
        let plan = plan::of(&launch);
        assert_eq!(plan["fits"], true, "{plan}");
        let pages = planned(&plan);
        assert_eq!(count(&pages, LARGE_PAGE), large_pages, "{plan}");
        assert_eq!(count(&pages, PAGE), 0, "{plan}");
        let tensors: u64 = plan["needs"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|need| need["bytes"].as_u64().expect("a number"))
            .sum();
        assert_eq!(waste(&plan, LARGE_PAGE), large_pages * LARGE_PAGE - tensors);

        let server = launch.clone().hugepages("require").start();
        assert_is_as_planned(&server, &plan);
        assert_eq!(answers(&server), expected, "{size}");
        drop(server);
        pool.assert_all_back();

        or_skip!(pool.set_large(large_pages - 1));
        let cause = if size == "auto" {
            "huge pages of 2 MiB".to_owned()
        } else {
            format!("needs {large_pages} huge pages of 1 GiB")
        };
        let ended = assert_refused(launch, kind, &cause);
        let has_large = size == "auto" && large_pages > 1;
        let hint = "or see what --hugepage-size 1G needs";
        assert_eq!(ended.log.contains(hint), has_large, "{}", ended.log);
        pool.assert_all_back();
    }
}

#[test]
fn a_machine_with_only_1_gib_pages_serves_a_mapped_model_on_them() {
    on_1_gib_alone("Q8_0", 2);
}

#[test]
fn a_machine_with_only_1_gib_pages_serves_a_repacked_model_on_them() {
    on_1_gib_alone("Q4_K", 1);
}

/// The plan of a machine with enough small pages takes no large one, unless it can fill it.
#[test]
fn a_1_gib_page_replaces_small_ones_that_are_missing() {
    let kinds = if full() {
        &["Q8_0", "Q4_K"][..]
    } else {
        &["Q8_0"]
    };
    for kind in kinds {
        let stock = launch(or_skip!(Launch::stock()), kind).start();
        let expected = answers(&stock);
        drop(stock);
        let launch = launch(Launch::ours(), kind);
        let need = need::of(&launch);
        let mut pool = or_skip!(Pool::with(need));
        or_skip!(pool.set_large(1));
        let plan = plan::of(&launch);
        assert_eq!(count(&planned(&plan), LARGE_PAGE), 0, "{plan}");

        pool.set(need - 1);
        let plan = plan::of(&launch);
        let pages = planned(&plan);
        assert_eq!(plan["fits"], true, "{plan}");
        assert_eq!(count(&pages, LARGE_PAGE), 1, "{plan}");
        let small = count(&pages, PAGE);
        // The weights in the file keep their pages. A repacked model has only buffers, and all of them share the large page.
        assert_eq!(small > 0, *kind == "Q8_0", "{plan}");
        assert!(small < need, "{plan}");
        assert!(waste(&plan, LARGE_PAGE) > LARGE_PAGE / 2, "{plan}");
        let server = launch.clone().hugepages("require").start();
        assert_is_as_planned(&server, &plan);
        assert_eq!(answers(&server), expected);
        drop(server);
        pool.assert_all_back();

        // exactly the pages of this plan, and one less
        pool.set(small);
        let server = launch.clone().hugepages("prefer").start();
        assert_eq!(smaps::hugetlb_bytes(server.pid()), bytes(&pages));
        assert_eq!(answers(&server), expected);
        drop(server);
        pool.assert_all_back();
        or_skip!(pool.set_large(0));
        assert_refused(launch, kind, &format!("needs {need} huge pages of 2 MiB"));
        pool.assert_all_back();
    }
}

/// The server repacks both models, so all their memory is in buffers: those of the draft have room in the page of the model's.
#[test]
fn the_buffers_of_two_models_share_a_page() {
    let mut pool = or_skip!(Pool::with(0));
    or_skip!(pool.set_large(1));
    let draft = models::demo("20M", "Q4_K");
    let launch = launch(Launch::ours(), "Q4_K")
        .args(["--spec-type", "draft-simple", "--model-draft"])
        .args([&draft]);
    let plan = plan::of(&launch);
    assert_eq!(count(&planned(&plan), LARGE_PAGE), 1, "{plan}");
    let of_draft = |need: &&Value| need["model"].as_str() == Some(&draft.to_string_lossy());
    let needs = plan["needs"].as_array().expect("a list").iter();
    assert!(needs.filter(of_draft).count() > 2, "{plan}");
    let server = launch.hugepages("require").start();
    let log = server.log();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()),
        LARGE_PAGE,
        "{plan}\n{log}"
    );
    assert!(Table::of(&log).percent >= 99.0, "{log}");
    server.assert_answers();
    drop(server);
    pool.assert_all_back();
}

/// The weights are in a store of 1 GiB pages, and the buffers share another page.
#[test]
fn a_store_of_1_gib_pages_serves_a_machine_that_has_no_others() {
    let mut pool = or_skip!(Pool::with(0));
    or_skip!(pool.set_large(2));
    let mounted = or_skip!(store::Mounted::with("pagesize=1G"));
    let launch = launch(Launch::ours(), "Q8_0").args([
        "--no-repack",
        "--hugepage-store",
        mounted.path().to_str().expect("plain"),
    ]);
    let plan = plan::of(&launch);
    assert_eq!(count(&planned(&plan), LARGE_PAGE), 2, "{plan}");
    let first = launch.clone().hugepages("require").start();
    assert_is_as_planned(&first, &plan);
    let expected = answers(&first);
    drop(first);
    let plan = plan::of(&launch);
    assert_eq!(count(&planned(&plan), LARGE_PAGE), 1, "{plan}");
    let second = launch.hugepages("require").start();
    assert_eq!(smaps::hugetlb_bytes(second.pid()), 2 * LARGE_PAGE);
    assert_eq!(answers(&second), expected);
}
