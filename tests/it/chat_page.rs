//! The chat page of the server: the files are stock's, and a browser can use them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ureq::Agent;

use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::{models, need, or_skip, programs, python, target_dir};

/// Headers that differ from one answer to the next with every server.
const OF_THE_MOMENT: [&str; 2] = ["date", "keep-alive"];

/// The page's files are embedded compressed: without this header the server refuses to send them.
const GZIP: Option<(&str, &str)> = Some(("accept-encoding", "gzip"));

/// The page asks for tools, which the server refuses unless it is started with some. Stock's page reports the same error.
const NO_TOOLS: &str =
    "/tools - Failed to load resource: the server responded with a status of 403";

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn get(server: &Server, path: &str, header: Option<(&str, &str)>) -> Answer {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // The test compares the sent bytes, so the agent neither asks for compression nor unpacks.
        .accept_encoding("");
    let agent: Agent = config.build().into();
    let mut request = agent.get(&server.url(path));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let mut response = request
        .call()
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    let headers = response.headers().iter();
    let headers = headers
        .filter(|(name, _)| !OF_THE_MOMENT.contains(&name.as_str()))
        .map(|(name, value)| {
            let value = value.to_str().expect("text").to_owned();
            (name.to_string(), value)
        });
    Answer {
        status: response.status().as_u16(),
        headers: headers.collect(),
        body: response.body_mut().read_to_vec().expect("an answer"),
    }
}

/// Stock's server and ours with the option off, with the same arguments.
fn both(args: &[&str]) -> Result<[Server; 2], String> {
    let model = models::demo("20M", "Q8_0");
    let launches = [Launch::stock()?, Launch::ours()];
    Ok(launches.map(|launch| launch.model(&model).args(args).start()))
}

/// Paths that `index.html` and the manifest name, and some that no page has.
fn paths(page: &str) -> Vec<String> {
    let mut paths: Vec<String> = ["/", "/index.html", "/none.js", "/sw.js", "/build.json"]
        .map(str::to_owned)
        .to_vec();
    for part in page.split(['"', '\'']) {
        let name = part.trim_start_matches("./").trim_start_matches('/');
        let is_file = [".js", ".css", ".png", ".svg", ".ico", ".webmanifest"]
            .iter()
            .any(|end| name.ends_with(end));
        if is_file && !name.contains(char::is_whitespace) && !name.contains("://") {
            paths.push(format!("/{name}"));
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

fn page_sources() -> String {
    let built = target_dir().join("stock/llama.cpp/tools/ui/dist/index.html");
    fs::read_to_string(built).unwrap_or_default()
}

#[test]
fn every_file_of_the_page_is_stocks_with_its_headers() {
    let [stock, ours] = or_skip!(both(&[]));
    let page = get(&ours, "/", GZIP);
    assert_eq!(page.status, 200, "the server is built with its page");
    let paths = paths(&page_sources());
    assert!(
        paths.len() > 40,
        "the page names its files in index.html: {paths:?}"
    );
    for path in &paths {
        for header in [None, GZIP, Some(("if-none-match", "\"0\""))] {
            let answers = [&stock, &ours].map(|server| get(server, path, header));
            assert_eq!(answers[0], answers[1], "{path} with {header:?}");
        }
    }
}

#[test]
fn the_page_needs_no_key_where_stock_needs_none() {
    let [stock, ours] = or_skip!(both(&["--api-key", "secret"]));
    for path in [
        "/",
        "/index.html",
        "/sw.js",
        "/props",
        "/v1/models",
        "/slots",
    ] {
        for header in [None, Some(("authorization", "Bearer secret"))] {
            let answers = [&stock, &ours].map(|server| get(server, path, header));
            assert_eq!(answers[0].status, answers[1].status, "{path}, {header:?}");
        }
    }
    assert_eq!(get(&ours, "/", GZIP), get(&stock, "/", GZIP));
}

#[test]
fn without_the_page_and_with_another_one_the_answers_are_stocks() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fs::write(dir.path().join("index.html"), "<p>ours").expect("the file is ours");
    let path = dir.path().to_str().expect("UTF-8");
    for args in [&["--no-ui"][..], &["--path", path]] {
        let [stock, ours] = or_skip!(both(args));
        for path in ["/", "/index.html", "/sw.js", "/favicon.svg"] {
            let answers = [&stock, &ours].map(|server| get(server, path, GZIP));
            assert_eq!(answers[0], answers[1], "{path} with {args:?}");
        }
    }
}

#[test]
fn a_browser_chats_with_a_real_model_and_finds_the_conversation_again() {
    or_skip!(programs::run(Command::new("chromedriver").arg("--version")));
    let python = or_skip!(python::python());
    let model = or_skip!(models::smollm2());
    let launch = Launch::ours()
        .repacked_model(&model)
        .args(["--temp", "0", "--predict", "64"]);
    let _pool = or_skip!(Pool::with(need::of(&launch)));
    let server = launch.hugepages("require").start();
    let screenshot = target_dir().join("chat-page.png");
    let args = [&server.url("/"), screenshot.to_str().expect("UTF-8")];
    let seen = python::run_script(&python, "browser.py", &args)
        .unwrap_or_else(|said| panic!("{said}\n{}", server.log()));

    let text = |field: &str| seen[field].as_str().expect("a text").to_owned();
    assert!(text("answer").contains("scatter"), "{seen}");
    assert!(
        seen["pieces"].as_u64() > Some(2),
        "the page shows the answer as it grows: {seen}"
    );
    assert!(text("reloaded").contains("scatter"), "{seen}");
    assert!(text("listed").contains("sky blue"), "{seen}");
    let errors = seen["errors"].as_array().expect("a list").iter();
    let unexpected =
        errors.filter(|error| !error.as_str().is_some_and(|text| text.contains(NO_TOOLS)));
    assert_eq!(unexpected.count(), 0, "{seen}");
    let size = fs::metadata(&screenshot).map(|file| file.len());
    assert!(size.is_ok_and(|size| size > 10_000), "{screenshot:?}");
}
