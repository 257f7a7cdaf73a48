//! Router mode: a server without a model starts one process per model. Each process must get the options too.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::{http, models, need, or_skip, wait_for};

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
