//! Other backends of llama.cpp: only memory that the CPU reads takes huge pages, and answers are those of stock with the same backend.
//!
//! Vulkan runs on Mesa's driver for the CPU, and BLAS is `OpenBLAS`. `make backends` builds both servers, so only `make test-full` runs
//! these tests.

use std::path::Path;

use crate::elsewhere::{assert_only_these_take_pages, layer_of};
use crate::equality::answers;
use crate::support::gguf::{Gguf, Tensor};
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::store::Store;
use crate::support::table::Table;
use crate::support::{models, need, or_skip, programs, smaps};

const MODEL: (&str, &str) = ("100M", "Q8_0");

/// Stock and ours with the same arguments.
struct Pair {
    stock: Launch,
    ours: Launch,
}

impl Pair {
    fn of(model: &Path, args: &[&str]) -> Result<Self, String> {
        let launch = |program| Launch::of(program).repacked_model(model).args(args);
        Ok(Self {
            stock: launch(programs::stock_with_backends()?),
            ours: launch(programs::with_backends()?),
        })
    }

    /// Upstream ignores a driver for the CPU that nobody names.
    fn on_vulkan(model: &Path, args: &[&str]) -> Result<Self, String> {
        let pair = Self::of(model, args)?;
        let launch = |launch: Launch| {
            launch
                .args(["--device", "Vulkan0", "--fit", "off"])
                .env("GGML_VK_VISIBLE_DEVICES", "0")
        };
        Ok(Self {
            stock: launch(pair.stock),
            ours: launch(pair.ours),
        })
    }
}

/// Starts ours with exactly the pages that it needs. The prompt is long enough for BLAS, and for batches that a GPU computes with weights of
/// the CPU.
fn answers_as_stock(pair: &Pair, check: impl FnOnce(&Server)) {
    let need = need::of(&pair.ours);
    let mut pool = or_skip!(Pool::with(need));
    let stock = pair.stock.clone().start();
    let expected = answers(&stock);
    drop(stock);

    let server = pair.ours.clone().hugepages("require").start();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        need,
        "\n{}",
        server.log()
    );
    let table = Table::of(&server.log());
    let counted: u64 = table
        .rows
        .iter()
        .filter(|row| row.on == "2M")
        .map(|row| row.pages)
        .sum();
    assert_eq!(counted, need, "{table:?}");
    check(&server);
    assert_eq!(answers(&server), expected);
    drop(server);
    pool.assert_all_back();

    pool.set(need - 1);
    let ended = pair.ours.clone().hugepages("require").run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    pool.assert_all_back();
}

fn is_on_vulkan(server: &Server) {
    assert!(maps(server, "libvulkan_lvp"), "\n{}", server.log());
}

fn maps(server: &Server, library: &str) -> bool {
    let vmas = smaps::read(server.pid());
    vmas.iter().any(|vma| vma.path.contains(library))
}

#[test]
#[ignore = "long: make test-full"]
fn layers_on_vulkan_take_no_page() {
    let model = models::demo(MODEL.0, MODEL.1);
    let pair = or_skip!(Pair::on_vulkan(&model, &["--n-gpu-layers", "4"]));
    let file = Gguf::read(&model);
    let layers = file
        .tensors
        .iter()
        .filter_map(layer_of)
        .max()
        .expect("layers")
        + 1;
    answers_as_stock(&pair, |server| {
        is_on_vulkan(server);
        // The output layer counts as one of the four.
        let first = layers - 3;
        assert_only_these_take_pages(server, &file, |tensor| {
            tensor.name == "token_embd.weight"
                || layer_of(tensor).is_some_and(|layer| layer < first)
        });
    });
}

#[test]
#[ignore = "long: make test-full"]
fn tensors_that_an_override_puts_on_vulkan_take_no_page() {
    let model = models::demo(MODEL.0, MODEL.1);
    let there = [
        "--n-gpu-layers",
        "0",
        "--override-tensor",
        r"blk\.[0-5]\..*=Vulkan0",
    ];
    let pair = or_skip!(Pair::on_vulkan(&model, &there));
    answers_as_stock(&pair, |server| {
        is_on_vulkan(server);
        assert_only_these_take_pages(server, &Gguf::read(&model), |tensor| {
            layer_of(tensor).is_none_or(|layer| layer > 5)
        });
    });
}

/// The usual way to run a mixture of experts with one GPU: the experts stay with the CPU.
#[test]
#[ignore = "long: make test-full"]
fn experts_that_stay_with_the_cpu_are_all_that_takes_pages() {
    let model = models::demo_with(MODEL.0, MODEL.1, &["--experts", "4"]);
    let there = ["--n-gpu-layers", "99", "--n-cpu-moe", "3"];
    let pair = or_skip!(Pair::on_vulkan(&model, &there));
    let is_expert = |tensor: &Tensor| tensor.name.contains("_exps.");
    answers_as_stock(&pair, |server| {
        is_on_vulkan(server);
        assert_only_these_take_pages(server, &Gguf::read(&model), |tensor| {
            tensor.name == "token_embd.weight"
                || is_expert(tensor) && layer_of(tensor).is_some_and(|layer| layer < 3)
        });
        assert_eq!(smaps::hugetlb_bytes_of(server.pid(), "kv"), 0);
    });
}

/// Stock puts tensors that are not mapped into memory that the driver pins, and no huge page could hold them there.
#[test]
#[ignore = "long: make test-full"]
fn tensors_that_are_not_mapped_are_on_huge_pages_and_not_in_memory_of_the_driver() {
    let model = models::demo(MODEL.0, MODEL.1);
    let args = ["--n-gpu-layers", "4", "--load-mode", "none"];
    let pair = or_skip!(Pair::on_vulkan(&model, &args));
    let mapped = or_skip!(Pair::on_vulkan(&model, &args[..2]));
    let need = need::of(&mapped.ours);
    answers_as_stock(&pair, |server| {
        is_on_vulkan(server);
        assert_eq!(
            smaps::hugetlb_bytes(server.pid()) / PAGE,
            need,
            "\n{}",
            server.log()
        );
    });
}

/// Layers that the GPU no longer has are added to the resident image.
#[test]
#[ignore = "long: make test-full"]
fn a_store_works_with_layers_on_vulkan() {
    let model = models::demo(MODEL.0, MODEL.1);
    let pairs = ["5", "2"].map(|layers| Pair::on_vulkan(&model, &["--n-gpu-layers", layers]));
    let store = or_skip!(Store::with(200));
    for pair in pairs {
        let pair = or_skip!(pair);
        let expected = answers(&pair.stock.start());
        let launch = pair.ours.hugepages("require");
        let server = launch.args(["--hugepage-store", store.arg()]).start();
        assert_eq!(answers(&server), expected);
    }
    store.assert_only_files_hold_pages();
}

#[test]
#[ignore = "long: make test-full"]
fn blas_computes_from_huge_pages() {
    let model = models::demo(MODEL.0, MODEL.1);
    for args in [
        &["--device", "none"][..],
        &["--device", "none", "--no-repack"],
    ] {
        let pair = or_skip!(Pair::of(&model, args));
        let plain = or_skip!(Launch::stock()).repacked_model(&model).args(args);
        let plain = answers(&plain.start());
        answers_as_stock(&pair, |server| {
            assert!(maps(server, "libopenblas"), "\n{}", server.log());
            // BLAS multiplies floats, and the CPU quantized values.
            assert_ne!(answers(server), plain, "BLAS computes nothing");
        });
    }
}
