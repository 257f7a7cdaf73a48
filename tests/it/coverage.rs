//! All memory of a model that the CPU reads is on huge pages, and the answers equal stock's bit for bit.
//!
//! Three sources must agree: stock's log lists the size of each buffer, the kernel lists the page size of each mapping, and the table in
//! our log lists both.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::equality::{answers, repacked_logits, results_need};
use crate::support::gguf::Gguf;
use crate::support::pool::{LARGE_PAGE, PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::table::Table;
use crate::support::{full, http, models, need, or_skip, plan, programs, smaps};

const MIB: f64 = 1024.0 * 1024.0;

/// The least percentage of tensor bytes that must be on huge pages.
const COVERED: f64 = 99.0;

/// Rounding error of the logs, in MiB.
const ROUNDING: f64 = 0.015;

fn size() -> &'static str {
    if full() { "1G" } else { "100M" }
}

/// A model and the arguments of its server.
struct Case {
    model: PathBuf,
    args: Vec<String>,
}

impl Case {
    fn new(model: PathBuf, args: &[&str]) -> Self {
        Self {
            model,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }

    /// The server with its buffers in the log.
    fn launch(&self, launch: Launch) -> Launch {
        launch
            .repacked_model(&self.model)
            .args(["--verbosity", "4"])
            .args(&self.args)
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }
}

/// The sum of stock's buffers of a sort (`KV`, `compute`, `output`), in MiB.
fn stock_mib(log: &str, sort: &str) -> f64 {
    let end = format!("{sort} buffer size = ");
    let lines = log.lines().filter_map(|line| {
        // CPU KV buffer size =     6.88 MiB
        let (_, rest) = line.split_once(" CPU ")?;
        rest.trim_start().strip_prefix(&end)
    });
    lines
        .map(|rest| {
            let number = rest.trim().trim_end_matches(" MiB");
            number.parse::<f64>().expect("a number of MiB")
        })
        .sum()
}

#[expect(clippy::cast_sign_loss, reason = "sizes are not negative")]
fn pages_for(mib: f64, page: u64) -> u64 {
    (mib * MIB / page as f64).ceil() as u64
}

fn tensor_bytes(model: &Path) -> u64 {
    let files = Gguf::read_model(model);
    let tensors = files.iter().flat_map(|file| &file.tensors);
    tensors.map(|tensor| tensor.end - tensor.start).sum()
}

/// Asserts that the table equals the kernel's count for each kind, and its sum the process's total. The kernel has one count for buffers
/// that share a range.
fn assert_table_is_the_kernels(server: &Server, table: &Table) {
    let mut sum = 0;
    let is_shared = smaps::hugetlb_bytes_of(server.pid(), "buffers") > 0;
    for kind in ["weights", "repacked", "kv", "compute", "other"] {
        let bytes = smaps::hugetlb_bytes_of(server.pid(), kind);
        let rows = table.rows.iter().filter(|row| row.kind == kind);
        let pages: u64 = rows
            .map(|row| match row.on.as_str() {
                "2M" => row.pages,
                "1G" => row.pages * 512,
                _ => 0,
            })
            .sum();
        if !is_shared || kind == "weights" {
            assert_eq!(pages * PAGE, bytes, "{kind}: {table:?}");
        }
        sum += pages * PAGE;
    }
    assert_eq!(smaps::hugetlb_bytes(server.pid()), sum, "{table:?}");
}

/// Asserts that the CPU reads no tensor from the page cache. As with stock, an unread mapping may remain.
fn assert_no_tensor_is_read_from_the_file(server: &Server, model: &Path) {
    let vmas = smaps::read(server.pid());
    for file in Gguf::read_model(model) {
        let read = smaps::of_file(&vmas, &file.path).into_iter();
        for vma in read.filter(|vma| vma.size("Rss") > 0) {
            let mapped = vma.offset..vma.offset + vma.len();
            let tensor = file
                .tensors
                .iter()
                .find(|tensor| tensor.start < mapped.end && tensor.end > mapped.start);
            assert!(
                tensor.is_none(),
                "`{}` is in {vma:?}",
                tensor.map_or("", |tensor| &tensor.name)
            );
        }
    }
}

/// Asserts that each kind has the bytes of stock's buffers, on as many pages as they fill.
fn assert_covers(server: &Server, model: &Path, stock_log: &str) {
    let log = server.log();
    let table = Table::of(&log);
    assert_table_is_the_kernels(server, &table);
    assert_no_tensor_is_read_from_the_file(server, model);

    let stock = |sorts: &[&str]| {
        sorts
            .iter()
            .map(|sort| stock_mib(stock_log, sort))
            .sum::<f64>()
    };
    let ours = |kind: &str| table.mib(kind, "2M") + table.mib(kind, "base");
    let same = |a: f64, b: f64| (a - b).abs() < 2.0 * ROUNDING;
    assert!(
        same(ours("kv"), stock(&["KV"])),
        "{} MiB\n{log}",
        stock(&["KV"])
    );
    assert!(
        same(ours("compute"), stock(&["compute", "output"])),
        "{} MiB\n{log}",
        stock(&["compute", "output"])
    );
    let weights = tensor_bytes(model) as f64 / MIB;
    assert!(
        ours("weights") + ours("repacked") > weights - ROUNDING,
        "{weights} MiB\n{log}"
    );
    for (kind, sorts) in [("kv", &["KV"][..]), ("compute", &["compute", "output"])] {
        let pages = |rounding: f64| -> u64 {
            let of = |sort: &&str| pages_for((stock(&[sort]) + rounding).max(0.0), PAGE);
            sorts.iter().map(of).sum()
        };
        let pages = pages(-ROUNDING)..=pages(ROUNDING);
        assert!(pages.contains(&table.pages(kind, "2M")), "{kind}\n{log}");
    }
    assert!(!table.rows.iter().any(|row| row.on == "base"), "{table:?}");
    assert!(
        table.percent >= COVERED && table.huge_mib >= table.total_mib * COVERED / 100.0,
        "{table:?}"
    );
}

/// Serves with exactly the needed pages, and compares memory, tokens and logits with stock.
fn covered(case: &Case) {
    covered_by(case, answers);
}

fn covered_by(case: &Case, ask: impl Fn(&Server) -> Value) {
    let stock = case.launch(or_skip!(Launch::stock())).start();
    let expected = ask(&stock);
    let stock_log = stock.log();
    drop(stock);

    let ours = case.launch(Launch::ours()).hugepages("require");
    let need = need::of(&ours);
    let planned = plan::pages_by_kind(&plan::of(&ours));
    assert_eq!(planned.values().sum::<u64>(), need, "{planned:?}");
    let mut pool = or_skip!(Pool::with(need.saturating_sub(1)));
    let short = ours.clone().run();
    short.assert_clean_failure();
    assert_eq!(need::told_in(&short.log), need);
    pool.assert_all_back();

    pool.set(need);
    let server = ours.start();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        need,
        "\n{}",
        server.log()
    );
    for (kind, pages) in planned {
        let bytes = smaps::hugetlb_bytes_of(server.pid(), &kind);
        assert_eq!(bytes / PAGE, pages, "{kind}: pages differ from the plan");
    }
    assert_covers(&server, &case.model, &stock_log);
    assert_eq!(ask(&server), expected);
    drop(server);
    pool.assert_all_back();
}

fn logits_are_those_of_stock(case: &Case) {
    let stock = or_skip!(programs::stock("llama-results"));
    let ours = or_skip!(programs::patched("llama-results"));
    let expected = repacked_logits(&stock, &case.model, &case.args());
    let need = results_need(&ours, &case.model, &case.args());
    let pool = or_skip!(Pool::with(need));
    let args = [&case.args()[..], &["--hugepages"]].concat();
    assert!(
        repacked_logits(&ours, &case.model, &args) == expected,
        "not the same logits"
    );
    pool.assert_all_back();
}

macro_rules! covered {
    ($($name:ident: $case:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn all_that_the_cpu_reads_is_on_huge_pages_and_answers_are_those_of_stock() {
                covered(&$case);
            }

            #[test]
            fn logits_are_those_of_stock() {
                super::logits_are_those_of_stock(&$case);
            }
        }
    )*};
}

covered! {
    q8_0: Case::new(models::demo(size(), "Q8_0"), &[]);
    q4_0: Case::new(models::demo(size(), "Q4_0"), &[]);
    q4_k: Case::new(models::demo(size(), "Q4_K"), &[]);
    f16: Case::new(models::demo(size(), "F16"), &[]);
    mixture_of_experts: Case::new(models::demo_with("100M", "Q8_0", &["--experts", "4"]), &["--ctx-size", "1024"]);
    repacked_mixture_of_experts: Case::new(models::demo_with("100M", "Q4_K", &["--experts", "4"]), &["--ctx-size", "1024"]);
    three_shards: Case::new(models::demo_in_shards(size(), "Q8_0", 3), &[]);
    three_repacked_shards: Case::new(models::demo_in_shards(size(), "Q4_K", 3), &[]);
    load_mode_none: Case::new(models::demo(size(), "Q8_0"), &["--load-mode", "none"]);
    load_mode_dio: Case::new(models::demo(size(), "Q8_0"), &["--load-mode", "dio"]);
    load_mode_mlock: Case::new(models::demo(size(), "Q8_0"), &["--load-mode", "mlock"]);
    load_mode_mmap_and_mlock: Case::new(models::demo(size(), "Q8_0"), &["--load-mode", "mmap+mlock"]);
    load_mode_none_repacked: Case::new(models::demo(size(), "Q4_K"), &["--load-mode", "none"]);
    context_of_16k: Case::new(long_context(), &["--ctx-size", "16384"]);
    context_of_16k_in_q8_0: Case::new(
        long_context(),
        &["--ctx-size", "16384", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"]
    );
}

fn long_context() -> PathBuf {
    models::demo_with("100M", "Q8_0", &["--context", "16384"])
}

#[test]
fn an_embeddings_model_is_on_huge_pages_and_its_vectors_are_those_of_stock() {
    let model = crate::embeddings::encoder();
    covered_by(&Case::new(model, &["--embeddings"]), |server| {
        let body = json!({ "input": ["a dog runs in the park", "interest rates rose again"] });
        http::post_json(&server.url("/v1/embeddings"), &body)["data"].clone()
    });
}

/// A context whose KV cache is larger than the largest page, of a small model.
const LARGE_CONTEXT: &str = "98304";

fn large_kv(size: &str) -> Case {
    Case::new(
        models::demo_with("100M", "Q8_0", &["--context", LARGE_CONTEXT]),
        &[
            "--ctx-size",
            LARGE_CONTEXT,
            "--no-warmup",
            "--hugepage-size",
            size,
        ],
    )
}

/// Stock's answers and the MiB of its KV cache, without our option that stock rejects.
fn expected_of_stock(case: &Case) -> Result<(Value, f64), String> {
    let known: Vec<_> = case.args.split(|arg| arg == "--hugepage-size").collect();
    let stock = Case {
        model: case.model.clone(),
        args: known[0].to_vec(),
    };
    let server = stock.launch(Launch::stock()?).start();
    Ok((answers(&server), stock_mib(&server.log(), "KV")))
}

#[test]
fn auto_uses_a_1_gib_page_that_is_there_and_small_ones_for_the_rest() {
    let case = large_kv("auto");
    let (expected, kv) = or_skip!(expected_of_stock(&case));
    assert!(kv * MIB > LARGE_PAGE as f64, "a KV cache of {kv} MiB");
    let launch = case.launch(Launch::ours()).hugepages("require");
    // The need is counted before the pool has a 1 GiB page.
    let need = need::of(&launch);
    let per_large = LARGE_PAGE / PAGE;
    let mut pool = or_skip!(Pool::with(need.saturating_sub(per_large)));
    or_skip!(pool.set_large(1));

    let server = launch.start();
    let table = Table::of(&server.log());
    assert_table_is_the_kernels(&server, &table);
    assert_eq!(table.pages("kv", "1G"), 1, "{table:?}");
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
    let page_sizes: Vec<_> = smaps::read(server.pid())
        .iter()
        .filter(|vma| vma.path.starts_with("/memfd:llama-buffers"))
        .map(|vma| (vma.size("KernelPageSize"), vma.len()))
        .collect();
    let rest = table.pages("kv", "2M") + table.pages("compute", "2M");
    assert!(rest >= pages_for(kv, PAGE) - per_large, "{table:?}");
    assert_eq!(page_sizes, [(LARGE_PAGE, LARGE_PAGE), (PAGE, rest * PAGE)]);
    assert!(table.percent >= COVERED, "{table:?}");
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();
}

/// Serves with transparent huge pages and an empty pool.
fn on_thp(model: &Path) {
    let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
    let enabled = std::fs::read_to_string(enabled).unwrap_or_default();
    if !enabled.contains("[madvise]") && !enabled.contains("[always]") {
        return crate::support::skip("THP is switched off");
    }
    let case = Case::new(model.to_owned(), &["--hugepage-size", "thp"]);
    let (expected, kv) = or_skip!(expected_of_stock(&case));
    let _pool = or_skip!(Pool::with(0));
    let server = case.launch(Launch::ours()).hugepages("require").start();
    let table = Table::of(&server.log());
    assert_eq!(smaps::hugetlb_bytes(server.pid()), 0);
    assert!(table.percent >= COVERED, "{table:?}");
    assert_no_tensor_is_read_from_the_file(&server, model);
    let vmas = smaps::read(server.pid());
    let sum = |field: &str| vmas.iter().map(|vma| vma.size(field)).sum::<u64>() as f64 / MIB;
    // The kernel's sum covers the whole process, so it can exceed the table's.
    assert!(sum("AnonHugePages") >= table.huge_mib, "{table:?}");
    assert!((table.mib("kv", "thp") - kv).abs() < 2.0 * ROUNDING);
    let named: Vec<_> = vmas
        .iter()
        .filter(|vma| vma.path.starts_with("[anon:llama-"))
        .collect();
    // Kernels without CONFIG_ANON_VMA_NAME show no names.
    for vma in named {
        assert!(vma.has_flag("hg"), "asked for THP: {vma:?}");
    }
    assert_eq!(answers(&server), expected);
}

#[test]
fn mapped_weights_and_all_buffers_are_on_thp_without_a_pool() {
    on_thp(&models::demo(size(), "Q8_0"));
}

#[test]
fn repacked_weights_and_all_buffers_are_on_thp_without_a_pool() {
    on_thp(&models::demo(size(), "Q4_K"));
}
