//! Small models of every architecture and type give the same tokens and logits on huge pages as with stock.

use std::path::Path;

use serde_json::json;

use crate::equality::{answers, repacked_logits, results_need};
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::{http, made, models, need, or_skip, programs, smaps};

/// The types that `hugepages demo-model` writes.
const TYPES: [&str; 7] = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"];

/// Large enough for a few pages, and for every shape.
const SIZE: &str = "16M";

/// Asserts that stock and our server give the same answer. The pool has exactly the pages that our server needs.
fn same_on_huge_pages<T: PartialEq>(
    model: &Path,
    args: &[&str],
    ask: impl Fn(&Server) -> T,
) -> Result<(), String> {
    let stock = Launch::stock()?.repacked_model(model).args(args).start();
    let expected = ask(&stock);
    drop(stock);
    let launch = Launch::ours().repacked_model(model).args(args);
    let need = need::of(&launch);
    let pool = Pool::with(need)?;
    let server = launch.hugepages("require").start();
    let name = model.display();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        need,
        "{name}\n{}",
        server.log()
    );
    assert!(ask(&server) == expected, "{name}: not the same answers");
    drop(server);
    pool.assert_all_back();
    Ok(())
}

fn same_logits_on_huge_pages(model: &Path) -> Result<(), String> {
    let stock = programs::stock("llama-results")?;
    let ours = programs::patched("llama-results")?;
    let expected = repacked_logits(&stock, model, &[]);
    let pool = Pool::with(results_need(&ours, model, &[]))?;
    assert!(
        repacked_logits(&ours, model, &["--hugepages"]) == expected,
        "{}: not the same logits",
        model.display()
    );
    pool.assert_all_back();
    Ok(())
}

/// Asserts equal answers for all types, including those that this CPU repacks.
fn generates_as_stock(arch: &str, args: &[&str]) {
    for kind in TYPES {
        let model = models::demo_with(SIZE, kind, &[&["--arch", arch], args].concat());
        or_skip!(same_on_huge_pages(&model, &[], answers));
        or_skip!(same_logits_on_huge_pages(&model));
    }
}

#[test]
fn llama_is_the_same_on_huge_pages() {
    generates_as_stock("llama", &[]);
}

#[test]
fn llama_whose_embeddings_are_its_output_is_the_same_on_huge_pages() {
    generates_as_stock("llama", &["--tied"]);
}

#[test]
fn gemma3_with_sliding_windows_is_the_same_on_huge_pages() {
    generates_as_stock("gemma3", &[]);
}

#[test]
fn lfm2_with_recurrent_states_is_the_same_on_huge_pages() {
    generates_as_stock("lfm2", &[]);
}

#[test]
fn llama_with_experts_is_the_same_on_huge_pages() {
    generates_as_stock("llama", &["--experts", "4"]);
}

#[test]
fn qwen3_is_the_same_on_huge_pages() {
    generates_as_stock("qwen3", &[]);
}

#[test]
fn qwen3_whose_embeddings_are_its_output_is_the_same_on_huge_pages() {
    generates_as_stock("qwen3", &["--tied"]);
}

#[test]
fn qwen3moe_is_the_same_on_huge_pages() {
    generates_as_stock("qwen3moe", &["--experts", "8"]);
}

#[test]
fn bert_is_the_same_on_huge_pages() {
    for kind in TYPES {
        let model = models::demo_with(SIZE, kind, &["--arch", "bert"]);
        or_skip!(same_on_huge_pages(&model, &["--embeddings"], |server| {
            let body = json!({ "input": ["a dog runs in the park", "interest rates rose"] });
            http::post_json(&server.url("/v1/embeddings"), &body)["data"].clone()
        }));
    }
}

/// The model has two KV caches, one of them for a sliding window.
#[test]
fn gemma4_is_the_same_on_huge_pages() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = dir.path().join("gemma4.gguf");
    made::gemma4(&model);
    // Each cache has its own buffer: both below one page, one of them, then both above with a partial last page.
    for args in [
        &["--ctx-size", "512"][..],
        &["--ctx-size", "4096"],
        &["--ctx-size", "4608", "--swa-full"],
    ] {
        or_skip!(same_on_huge_pages(&model, args, answers));
    }
    or_skip!(same_logits_on_huge_pages(&model));
}
