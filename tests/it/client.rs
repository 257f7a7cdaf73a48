//! The server as clients see it: the `openai` package for Python, and the endpoints that others poll.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::{http, models, need, or_skip, python, wait_for};

/// Stock's server and ours, which gets all pages that it needs.
fn servers_of_both(model: &Path, args: &[&str]) -> Result<([Server; 2], Pool), String> {
    let ours = Launch::ours().model(model).args(args);
    let pool = Pool::with(need::of(&ours))?;
    let stock = Launch::stock()?.model(model).args(args).start();
    Ok(([stock, ours.hugepages("require").start()], pool))
}

fn chat(python: &Path, server: &Server) -> Value {
    python::run_script(python, "client.py", &[&server.url("/v1")])
        .unwrap_or_else(|said| panic!("{said}\n{}", server.log()))
}

#[test]
fn openais_python_client_streams_what_stock_streams() {
    let python = or_skip!(python::python());
    let model = models::demo("20M", "Q8_0");
    let (servers, _pool) = or_skip!(servers_of_both(&model, &[]));
    let [stock, ours] = servers.map(|server| chat(&python, &server));
    assert!(
        ours["chunks"].as_u64() > Some(4),
        "streamed in pieces: {ours}"
    );
    assert_eq!(ours["streamed"], ours["whole"], "the pieces are the whole");
    assert!(
        ours["whole"].as_str().is_some_and(|text| !text.is_empty()),
        "{ours}"
    );
    assert_eq!(ours, stock);
}

/// The paths of all values: `/default_generation_settings/params/seed`.
fn keys(value: &Value) -> BTreeSet<String> {
    fn collect(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
        keys.insert(path.to_owned());
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, value)| collect(value, &format!("{path}/{name}"), keys)),
            Value::Array(items) => items
                .iter()
                .for_each(|value| collect(value, &format!("{path}/*"), keys)),
            _ => {}
        }
    }
    let mut keys = BTreeSet::new();
    collect(value, "", &mut keys);
    keys
}

/// The names of the metrics, with help and type.
fn metric_names(text: &str) -> BTreeSet<String> {
    let value_or_comment = |line: &str| {
        if line.starts_with('#') {
            line.to_owned()
        } else {
            line.split(' ').next().unwrap_or_default().to_owned()
        }
    };
    text.lines().map(value_or_comment).collect()
}

#[test]
fn health_props_and_metrics_are_as_with_stock() {
    let model = models::demo("20M", "Q8_0");
    let (servers, _pool) = or_skip!(servers_of_both(&model, &["--metrics"]));
    for server in &servers {
        server.complete("Hello", &json!({ "temperature": 0 }));
    }
    let [stock, ours] = &servers;
    let both = |path: &str| [stock, ours].map(|server| http::get(&server.url(path)));

    let [expected, health] = both("/health");
    assert_eq!(health, expected);
    assert_eq!(health, (200, r#"{"status":"ok"}"#.to_owned()));

    let [expected, props] = [stock, ours].map(|server| http::get_json(&server.url("/props")));
    assert!(
        keys(&props).is_superset(&keys(&expected)),
        "missing: {:?}",
        keys(&expected).difference(&keys(&props))
    );
    for key in [
        "model_path",
        "total_slots",
        "chat_template",
        "modalities",
        "default_generation_settings",
    ] {
        assert!(!expected[key].is_null(), "stock's /props has no `{key}`");
        assert_eq!(props[key], expected[key], "{key}");
    }

    let [expected, metrics] = both("/metrics");
    assert_eq!((expected.0, metrics.0), (200, 200));
    let [expected, metrics] = [&expected.1, &metrics.1].map(|text| metric_names(text));
    assert!(expected.len() > 10, "{expected:?}");
    assert!(
        metrics.is_superset(&expected),
        "missing: {:?}",
        expected.difference(&metrics)
    );
}

/// The sum of a field of /props over the weights; `None` if a value is null.
fn of_weights(server: &Server, field: &str) -> Option<u64> {
    let props = http::get_json(&server.url("/props"));
    let usages = props["hugepages"]["usages"].as_array().expect("usages");
    (usages.iter())
        .filter(|usage| matches!(usage["kind"].as_str(), Some("weights" | "repacked")))
        .filter(|usage| usage["page_size"].as_u64() > Some(0))
        .map(|usage| usage[field].as_u64())
        .sum()
}

#[test]
fn distribute_reports_the_bytes_that_are_local_to_the_threads_that_read_them() {
    for kind in ["Q8_0", "Q4_0"] {
        let model = models::demo("20M", kind);
        let launch = Launch::ours().model(&model);
        let _pool = or_skip!(Pool::with(need::of(&launch)));
        let server = launch.hugepages("require").start();
        assert_eq!(of_weights(&server, "local_bytes"), None);
        assert!(!server.log().contains("of matrices"), "{}", server.log());
        drop(server);

        let launch = Launch::ours()
            .model(&model)
            .args(["--numa", "distribute", "--metrics"]);
        let server = launch.hugepages("require").start();
        let local = of_weights(&server, "local_bytes").expect("local bytes");
        let remote = of_weights(&server, "remote_bytes").expect("remote bytes");
        let all = of_weights(&server, "bytes").expect("bytes");
        // Embeddings and norms are no matrices.
        assert!(
            (all / 2..all).contains(&(local + remote)),
            "{all}: {local}, {remote}"
        );
        let is_one_node = !Path::new("/sys/devices/system/node/node1").exists();
        assert_eq!(remote == 0, is_one_node, "{remote}");
        assert!(server.log().contains("of matrices"), "{}", server.log());
        let (_, metrics) = http::get(&server.url("/metrics"));
        let is_gauge = |line: &str| line.starts_with("llamacpp:hugepages_local_bytes{");
        let gauges = metrics.lines().filter(|line| is_gauge(line));
        let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        assert_eq!(gauges.filter_map(value).sum::<u64>(), local);
    }
}

/// The pages that the server holds: `llamacpp:hugepages_pages{kind="weights",backing="2M"} 12`.
fn gauges(server: &Server) -> BTreeSet<String> {
    let (status, text) = http::get(&server.url("/metrics"));
    assert_eq!(status, 200, "{text}");
    text.lines()
        .filter(|line| line.starts_with("llamacpp:hugepages_pages{"))
        .map(str::to_owned)
        .collect()
}

/// Upstream answers /metrics during sleep from a snapshot, because it cannot ask the model. A snapshot of ours would name
/// pages that are back in the pool.
#[test]
fn gauges_tell_that_a_server_that_sleeps_holds_nothing_and_do_not_wake_it() {
    let model = models::demo("20M", "Q8_0");
    let launch = Launch::ours()
        .model(&model)
        .args(["--metrics", "--sleep-idle-seconds", "2"]);
    let pool = or_skip!(Pool::with(need::of(&launch)));
    let server = launch.hugepages("require").start();
    let awake = gauges(&server);
    let weights = r#"llamacpp:hugepages_pages{kind="weights",backing="2M"}"#;
    assert!(
        awake.iter().any(|gauge| gauge.starts_with(weights)),
        "{awake:?}"
    );

    assert!(
        wait_for(Duration::from_secs(60), || server.is_asleep()),
        "does not sleep:\n{}",
        server.log()
    );
    pool.assert_all_back();
    assert_eq!(gauges(&server), BTreeSet::new());
    assert!(server.is_asleep(), "woken:\n{}", server.log());

    server.complete("Hello", &json!({ "temperature": 0 }));
    assert_eq!(gauges(&server), awake);
}

#[test]
fn a_server_that_finds_no_pages_when_it_wakes_says_so_and_stays_asleep() {
    let model = models::demo("20M", "Q8_0");
    let launch = Launch::ours()
        .model(&model)
        .args(["--sleep-idle-seconds", "1"])
        .hugepages("require");
    let need = need::of(&launch);
    let mut pool = or_skip!(Pool::with(need));
    let server = launch.start();
    let body = json!({ "prompt": "Hello", "temperature": 0, "n_predict": 4 });
    let ask = || http::post(&server.url("/completion"), &body);
    let (status, expected) = ask();
    assert_eq!(status, 200, "{expected}");
    let sleeps = || wait_for(Duration::from_secs(60), || server.is_asleep());
    assert!(sleeps(), "does not sleep:\n{}", server.log());

    pool.set(need - 1);
    thread::scope(|scope| {
        let requests: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        for request in requests {
            let (status, answer) = request.join().expect("it answers");
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert_eq!(status, 503, "{answer}");
            assert!(
                message.contains(&format!("needs {need} huge pages"))
                    && message.contains(&format!("only {} are usable", need - 1))
                    && message.contains("hint: "),
                "{message}"
            );
        }
    });
    assert!(server.is_asleep(), "{}", server.log());
    pool.assert_all_back();

    pool.set(need);
    let (status, answer) = ask();
    assert_eq!(
        (status, &answer["content"]),
        (200, &expected["content"]),
        "{}",
        server.log()
    );
    assert!(sleeps(), "does not sleep again:\n{}", server.log());
    let ended = server.stop(Signal::TERM);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    pool.assert_all_back();
}
