//! Tensors that the CPU does not read take no huge page: tensors on another device, and tensors that are read row by row.
//!
//! The other device is a worker of llama.cpp's RPC backend on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::equality::answers;
use crate::support::gguf::{self, Gguf, Tensor};
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::store::Store;
use crate::support::table::Table;
use crate::support::worker::Worker;
use crate::support::{made, models, need, or_skip, smaps, wait_for};

/// The server of `cargo xtask tools`, because ours is built without the RPC backend.
fn client(model: &Path, worker: &Worker) -> Result<Launch, String> {
    let launch = Launch::tool("llama-server")?.model(model);
    Ok(launch.args(["--rpc", &worker.address, "--fit", "off"]))
}

/// A client that keeps tensors with matching names on the worker.
fn client_without(model: &Path, worker: &Worker, names: &str) -> Result<Launch, String> {
    let there = format!("{names}=RPC0[{}]", worker.address);
    Ok(client(model, worker)?.args(["--n-gpu-layers", "0", "--override-tensor", &there]))
}

fn blocks_of<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> BTreeSet<u64> {
    tensors
        .flat_map(|tensor| tensor.start / PAGE..tensor.end.div_ceil(PAGE))
        .collect()
}

/// Asserts that huge pages hold exactly the blocks of these tensors.
pub fn assert_only_these_take_pages(
    server: &Server,
    file: &Gguf,
    is_here: impl Fn(&Tensor) -> bool,
) {
    let here = blocks_of(file.tensors.iter().filter(|tensor| is_here(tensor)));
    assert!(
        here.len() < file.blocks().len(),
        "the other device holds no tensor"
    );
    let vmas = smaps::read(server.pid());
    let huge = vmas
        .iter()
        .filter(|vma| vma.path.starts_with("/memfd:llama-weights"));
    let taken: BTreeSet<u64> = huge
        .flat_map(|vma| vma.offset / PAGE..(vma.offset + vma.len()) / PAGE)
        .collect();
    assert_eq!(taken, here, "\n{}", server.log());
    assert_eq!(
        smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE,
        here.len() as u64
    );
}

/// The number in `blk.N.`
pub fn layer_of(tensor: &Tensor) -> Option<u32> {
    let (layer, _) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse().ok()
}

#[test]
fn tensors_that_an_override_puts_on_another_device_take_no_page() {
    let model = models::demo("100M", "Q8_0");
    let worker = or_skip!(Worker::start());
    let launch = or_skip!(client_without(&model, &worker, r"blk\.[0-5]\..*"));
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let expected = answers(&launch.clone().start());
    let server = launch.hugepages("require").start();
    let is_here = |tensor: &Tensor| layer_of(tensor).is_none_or(|layer| layer > 5);
    assert_only_these_take_pages(&server, &Gguf::read(&model), is_here);
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
    assert_eq!(answers(&server), expected);
    assert_eq!(
        smaps::hugetlb_bytes(worker.pid()),
        0,
        "the worker did not get the option"
    );
    drop(server);
    pool.assert_all_back();
}

/// The remaining tensors are scattered between the worker's. The engine packs them instead of using a page for each piece.
#[test]
fn tensors_between_those_of_another_device_share_pages() {
    let model = models::demo("100M", "Q8_0");
    let worker = or_skip!(Worker::start());
    let launch = or_skip!(client_without(&model, &worker, r"\.ffn_(up|down|gate).*"));
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let expected = answers(&launch.clone().start());
    let server = launch.hugepages("require").start();
    let file = Gguf::read(&model);
    let here = file
        .tensors
        .iter()
        .filter(|tensor| !tensor.name.contains(".ffn_") || tensor.name.contains("ffn_norm"));
    let bytes: u64 = here.map(|tensor| tensor.end - tensor.start).sum();
    let pages = smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE;
    assert_eq!(pages, bytes.div_ceil(PAGE), "\n{}", server.log());
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn layers_on_another_device_take_no_page() {
    let model = models::demo("100M", "Q8_0");
    let worker = or_skip!(Worker::start());
    let launch = or_skip!(client(&model, &worker)).args(["--n-gpu-layers", "99"]);
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let expected = answers(&launch.clone().start());
    let server = launch.hugepages("require").start();
    // The CPU looks up rows of the embeddings, so they stay here.
    assert_only_these_take_pages(&server, &Gguf::read(&model), |tensor| {
        tensor.name == "token_embd.weight"
    });
    assert_eq!(smaps::hugetlb_bytes_of(server.pid(), "kv"), 0);
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
    assert!(need < gguf::pages(&model) / 2, "{need} pages");
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();
}

/// A resident image holds the tensors that earlier servers needed. A server that needs more adds them.
#[test]
fn layers_that_come_back_from_another_device_are_added_to_the_resident_image() {
    let model = models::demo("100M", "Q8_0");
    let expected = answers(&or_skip!(Launch::stock()).model(&model).start());
    let worker = or_skip!(Worker::start());
    let store = or_skip!(Store::with(200));
    let launch = |layers: &str| {
        let launch = client(&model, &worker)?.hugepages("require");
        Ok::<_, String>(launch.args(["--n-gpu-layers", layers, "--hugepage-store", store.arg()]))
    };
    drop(or_skip!(launch("3")).start());
    let part = store.pages();
    assert!((1..gguf::pages(&model)).contains(&part), "{part} pages");
    let server = or_skip!(launch("0")).start();
    assert_eq!(answers(&server), expected);
    assert!(store.pages() >= gguf::pages(&model));
    drop(server);
    // A server that needs less than the image holds attaches to it.
    drop(or_skip!(launch("3")).start());
    store.assert_only_files_hold_pages();
}

#[test]
fn a_tensor_that_is_read_row_by_row_takes_no_page() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = dir.path().join("gemma4.gguf");
    made::gemma4(&model);
    let stock = or_skip!(Launch::stock()).model(&model);
    let expected = answers(&stock.args(["--lazy-mode", "on"]).start());

    let launch = |mode: &str| Launch::ours().model(&model).args(["--lazy-mode", mode]);
    let needs = [need::of(&launch("on")), need::of(&launch("off"))];
    let mut pool = or_skip!(Pool::with(needs[0]));
    let server = launch("on").hugepages("require").start();
    let file = Gguf::read(&model);
    assert_only_these_take_pages(&server, &file, |tensor| tensor.name != made::LAZY);
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, needs[0]);
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();

    // With lazy mode off, huge pages hold the tensor too.
    pool.set(needs[1]);
    let server = launch("off").hugepages("require").start();
    assert_eq!(
        smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE,
        file.blocks().len() as u64
    );
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, needs[1]);
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();
}

/// Adapters load after the model, so the reported need does not include them.
#[test]
fn an_adapter_is_on_huge_pages_and_answers_are_those_of_stock() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let adapter = dir.path().join("adapter.gguf");
    let model = models::demo("100M", "Q8_0");
    let bytes = made::lora(&model, 64, &adapter);
    assert!(bytes > 2 * PAGE, "{bytes} bytes are too few for this test");
    let lora = ["--lora", adapter.to_str().expect("UTF-8")];
    let expected = answers(&or_skip!(Launch::stock()).model(&model).args(lora).start());

    let plain = Launch::ours().model(&model);
    let pages = bytes.div_ceil(PAGE);
    let need = need::of(&plain);
    let mut pool = or_skip!(Pool::with(need + pages));
    let server = plain.clone().args(lora).hugepages("require").start();
    assert_eq!(
        smaps::hugetlb_bytes_of(server.pid(), "other") / PAGE,
        pages,
        "\n{}",
        server.log()
    );
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need + pages);
    let table = Table::of(&server.log());
    assert_eq!(table.pages("other", "2M"), pages, "{table:?}");
    assert_eq!(answers(&server), expected);
    drop(server);
    assert_ne!(
        answers(&plain.clone().start()),
        expected,
        "the adapter changes no answer"
    );
    pool.assert_all_back();

    pool.set(need + pages - 1);
    let ended = plain.args(lora).hugepages("require").run();
    ended.assert_clean_failure();
    assert!(ended.log.contains("huge pages"), "{}", ended.log);
    pool.assert_all_back();
    fs::remove_file(&adapter).expect("no process needs the adapter");
}

#[test]
fn a_worker_that_goes_away_takes_no_page_of_the_client_along() {
    let model = models::demo("20M", "Q8_0");
    let worker = or_skip!(Worker::start());
    let launch = or_skip!(client(&model, &worker)).args(["--n-gpu-layers", "1"]);
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let mut server = launch.hugepages("require").start();
    assert_eq!(pool.taken(), need);
    drop(worker);
    // llama.cpp aborts if a worker does not answer.
    let body = json!({ "prompt": "Hello", "n_predict": 1 });
    let _ = ureq::post(server.url("/completion")).send_json(&body);
    assert!(
        wait_for(Duration::from_secs(30), || server.has_ended()),
        "\n{}",
        server.log()
    );
    pool.assert_all_back();
}
