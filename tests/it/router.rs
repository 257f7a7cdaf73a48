//! Router mode: a server without a model starts one process per model. Each process must get the options too.

use std::ffi::OsStr;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::store::Store;
use crate::support::{http, models, need, or_skip, plan, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn status(server: &Server, model: &str) -> Value {
    let list = http::get_json(&server.url("/models"));
    let models = list["data"].as_array().expect("a list");
    let found = models.iter().find(|item| item["id"] == model);
    found.unwrap_or_else(|| panic!("no `{model}` in {list}"))["status"]["value"].clone()
}

fn load(server: &Server, model: &str) {
    http::post_json(&server.url("/models/load"), &json!({ "model": model }));
    assert!(
        wait_for(PATIENCE, || status(server, model) == "loaded"),
        "not loaded\n{}",
        server.log()
    );
}

#[test]
fn a_child_of_the_router_takes_pages_and_gives_them_back() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fs::copy(&model, dir.path().join("small.gguf")).expect("the disk has space");
    let need = need::of(&Launch::ours().model(&dir.path().join("small.gguf")));
    let pool = or_skip!(Pool::with(need + 2));

    let router = Launch::ours()
        .args(["--models-dir".as_ref(), dir.path().as_os_str()])
        .args(["--no-models-autoload", "--no-repack"])
        .env("LLAMA_ARG_HUGEPAGES", "1")
        .start();
    assert_eq!(pool.taken(), 0, "the router itself has no model");

    load(&router, "small");
    assert_eq!(pool.taken(), need, "\n{}", router.log());
    let body = json!({ "model": "small", "prompt": "Hello", "n_predict": 4, "ignore_eos": true });
    let answer = http::post_json(&router.url("/completion"), &body);
    assert_eq!(answer["tokens_predicted"], 4, "{answer}");

    http::post_json(&router.url("/models/unload"), &json!({ "model": "small" }));
    assert!(
        wait_for(PATIENCE, || status(&router, "small") == "unloaded"),
        "not unloaded\n{}",
        router.log()
    );
    pool.assert_all_back();

    // A router that ends also ends its children.
    load(&router, "small");
    assert_eq!(pool.taken(), need);
    let ended = router.stop(Signal::TERM);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    pool.assert_all_back();
}

#[test]
fn a_model_without_pages_is_503_with_the_need_and_answers_when_they_are_back() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for name in ["a.gguf", "b.gguf"] {
        fs::copy(&model, dir.path().join(name)).expect("the disk has space");
    }
    let need = need::of(&Launch::ours().model(&dir.path().join("a.gguf")));
    let pool = or_skip!(Pool::with(need + need / 2));
    let router = Launch::ours()
        .args(["--models-dir".as_ref(), dir.path().as_os_str()])
        .args(["--no-repack", "--hugepages"])
        .start();
    let ask = |model: &str| {
        let body = json!({ "model": model, "prompt": "Hello", "n_predict": 4, "ignore_eos": true });
        http::post(&router.url("/completion"), &body)
    };
    let (code, answer) = ask("a");
    assert_eq!(code, 200, "{answer}\n{}", router.log());

    // Twice: a refusal is not remembered.
    for _ in 0..2 {
        let (code, answer) = ask("b");
        assert_eq!(code, 503, "{answer}\n{}", router.log());
        let message = answer["error"]["message"].as_str().expect("a text");
        for fact in [
            format!("needs {need} huge pages of 2 MiB"),
            format!("only {} are usable", need / 2),
            "hint: sysctl vm.nr_hugepages=".to_owned(),
        ] {
            assert!(message.contains(&fact), "{message}");
        }
        let list = http::get_json(&router.url("/models"));
        let models = list["data"].as_array().expect("a list").iter();
        let status = &models.filter(|item| item["id"] == "b").collect::<Vec<_>>()[0]["status"];
        assert_eq!(status["exit_code"], 3, "{status}");
        let shown = status["message"].as_str().expect("a text");
        assert!(message.ends_with(shown), "{shown}");
    }

    http::post_json(&router.url("/models/unload"), &json!({ "model": "a" }));
    assert!(
        wait_for(PATIENCE, || status(&router, "a") == "unloaded"),
        "not unloaded\n{}",
        router.log()
    );
    let (code, answer) = ask("b");
    assert_eq!(code, 200, "{answer}\n{}", router.log());
    drop(router);
    pool.assert_all_back();
}

/// The longest unused go first. A server without a router names the way, and removes nothing.
#[test]
fn idle_images_make_room_for_the_next_model_of_a_router() {
    let model = models::demo("20M", "Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| dir.path().join(name);
    for name in ["a.gguf", "b.gguf", "c.gguf"] {
        fs::copy(&model, path(name)).expect("the disk has space");
    }
    let launch = || Launch::ours().args(["--no-repack", "--hugepages"]);
    let direct = |name: &str| launch().args([OsStr::new("-m"), path(name).as_os_str()]);
    let need = need::of(&Launch::ours().model(&path("a.gguf")));
    // The weights of two models and the buffers of one.
    let weights = 11;
    let store = or_skip!(Store::with(need + weights + 3));
    let router = launch()
        .args(["--models-dir".as_ref(), dir.path().as_os_str()])
        .args(["--models-max", "1", "--hugepage-store", store.arg()])
        .start();
    let ask = |server: &Server, model: &str| {
        let body = json!({ "model": model, "prompt": "Hello", "n_predict": 4, "ignore_eos": true, "temperature": 0 });
        http::post(&server.url("/completion"), &body)
    };
    let expected = ask(&Launch::ours().model(&model).start(), "a").1["content"].clone();
    for name in ["a", "b", "a", "c", "b", "a"] {
        let (code, answer) = ask(&router, name);
        assert_eq!(code, 200, "{name}: {answer}\n{}", router.log());
        assert_eq!(answer["content"], expected, "{name}");
        assert!(store.images().len() <= 2, "{name}: {:?}", store.names());
        // The time of the last use is in whole seconds.
        sleep(Duration::from_millis(1100));
    }
    let log = router.log();
    let removed = ["a", "b", "c"].map(|name| {
        let path = path(&format!("{name}.gguf"));
        log.matches(&format!("an image of {}", path.display()))
            .count()
    });
    assert_eq!(removed, [1; 3], "\n{log}");
    drop(router);
    store.assert_only_files_hold_pages();

    let third = direct("c.gguf").args(["--hugepage-store", store.arg()]);
    let refused = third.clone().run();
    assert_eq!(refused.status.code(), Some(3), "{}", refused.log);
    assert!(
        refused
            .log
            .contains("hint: use --hugepage-evict to remove idle images"),
        "{}",
        refused.log
    );
    // A plan counts the idle images, and removes none.
    let evicting = third.args(["--hugepage-evict"]);
    let plan = plan::of(&evicting);
    assert_eq!(plan["fits"], true, "{plan}");
    assert_eq!(plan["memory"]["buffers"], 0, "{plan}");
    assert_eq!(plan["pools"][0]["missing"], 0, "{plan}");
    assert_eq!(plan["commands"], json!([]), "{plan}");
    assert_eq!(store.images().len(), 2, "{:?}", store.names());
    let server = evicting.clone().start();
    assert_eq!(ask(&server, "c").1["content"], expected);
    drop(server);
    store.assert_only_files_hold_pages();

    // What cannot fit in any case removes nothing.
    let before = store.images();
    let ended = evicting.args(["--ctx-size", "65536"]).run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(!ended.log.contains("--hugepage-evict"), "{}", ended.log);
    assert_eq!(store.images(), before);
}

#[test]
fn the_plan_of_a_router_has_a_row_for_each_model_and_the_largest_sum() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let sizes = [("small", "20M"), ("large", "100M"), ("other", "20M")];
    for (name, size) in sizes {
        let path = dir.path().join(format!("{name}.gguf"));
        fs::copy(models::demo(size, "Q8_0"), path).expect("the disk has space");
    }
    fs::write(dir.path().join("broken.gguf"), "GGUF").expect("the folder is ours");
    let alone =
        |name: &str| plan::of(&Launch::ours().model(&dir.path().join(format!("{name}.gguf"))));
    let alone_small = alone("small");
    let pages = |plan: &Value| plan::pages_by_kind(plan).values().sum::<u64>();
    let [small, large] = [pages(&alone_small), pages(&alone("large"))];
    let launch = Launch::ours()
        .args(["--models-dir".as_ref(), dir.path().as_os_str()])
        .args(["--no-repack", "--models-max", "2"]);
    let mut pool = or_skip!(Pool::with(small + large - 1));
    let short = plan::of(&launch);
    assert_eq!(short["fits"], false, "{short}");
    let need = format!("need {} huge pages of 2 MiB", small + large);
    assert!(
        short["message"]
            .as_str()
            .is_some_and(|text| text.contains(&need)),
        "{short}"
    );
    pool.set(small + large);
    let plan = plan::of(&launch);
    assert_eq!(plan["fits"], true, "{plan}");
    assert_eq!(pages(&plan), small + large);
    let memory = |plan: &Value, name: &str| plan["memory"][name].as_u64().expect("a number");
    let of_models = 2 * memory(&alone_small, "process");
    assert!(memory(&plan, "process") > of_models, "{plan}");
    assert!(
        memory(&plan, "prompt_cache") < memory(&plan, "available"),
        "{plan}"
    );
    let mut rows: Vec<_> = plan["router"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| {
            let pages = row["bytes"].as_u64().map(|bytes| bytes / PAGE);
            (row["name"].as_str().expect("a text"), pages)
        })
        .collect();
    rows.sort_unstable();
    let expected = [
        ("broken", None),
        ("large", Some(large)),
        ("other", Some(small)),
        ("small", Some(small)),
    ];
    assert_eq!(rows, expected, "{plan}");
    pool.assert_all_back();
}
