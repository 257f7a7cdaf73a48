//! Bindings of other languages with the series: llama-cpp-python from our wheel, and llama-cpp-2 with our copy of its -sys crate.
//!
//! Their programs know nothing of huge pages and read `LLAMA_ARG_HUGEPAGES`. `make bindings` builds them, so only `make test-full` runs
//! these tests.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hugepages::port::Port;
use llama_hugepages::ffi;
use serde_json::{Value, json};

use crate::support::pool::{PAGE, Pool};
use crate::support::server::QUIET_THREADS;
use crate::support::store::Store;
use crate::support::{http, models, need, or_skip, programs, python, smaps, wait_for};

const ON: (&str, &str) = ("LLAMA_ARG_HUGEPAGES", "1");
/// More pages than the buffers of the test model take.
const BUFFERS: u64 = 300;

fn model() -> PathBuf {
    models::demo("100M", "Q8_0")
}

/// Sets the variables of huge pages to these and no others.
fn with_environment<'a>(command: &'a mut Command, environment: &[(&str, &str)]) -> &'a mut Command {
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"LLAMA_ARG_") {
            command.env_remove(name);
        }
    }
    command
        .env(QUIET_THREADS.0, QUIET_THREADS.1)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
}

fn run(command: &mut Command, environment: &[(&str, &str)]) -> Output {
    let output = with_environment(command, environment).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The result of `tests/bindings.py`, and the log.
fn complete(python: &Path, model: &Path, environment: &[(&str, &str)]) -> (Value, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bindings.py");
    let output = run(Command::new(python).arg(script).arg(model), environment);
    let log = text(&output.stderr);
    assert!(output.status.success(), "{}\n{log}", output.status);
    let result = serde_json::from_slice(&output.stdout);
    (result.unwrap_or_else(|error| panic!("{error}\n{log}")), log)
}

fn pages(result: &Value) -> u64 {
    result["huge"]
        .as_u64()
        .unwrap_or_else(|| panic!("{result}"))
        / PAGE
}

/// The pages of the weights: a load plans only these, because it does not know the context that follows.
fn weights(python: &Path, model: &Path) -> u64 {
    need::of_program("llama-cpp-python", || complete(python, model, &[ON]).1)
}

#[test]
#[ignore = "long: make test-full"]
fn the_python_class_answers_as_without_the_option_and_one_page_less_is_an_exception() {
    let python = or_skip!(python::with_wheel());
    let model = model();
    let weights = weights(&python, &model);
    let mut pool = or_skip!(Pool::with(weights + BUFFERS));
    let (off, _) = complete(&python, &model, &[]);
    assert_eq!(pages(&off), 0);
    let (on, _) = complete(&python, &model, &[ON]);
    assert_eq!(on["tokens"], off["tokens"]);
    let all = pages(&on);
    assert!(all > weights, "{all} pages, {weights} of them for weights");
    pool.assert_all_back();

    pool.set(all);
    assert_eq!(complete(&python, &model, &[ON]).0, on);
    for (usable, failed) in [
        (all - 1, "Failed to create llama_context"),
        (weights - 1, "Failed to load model from file"),
    ] {
        pool.set(usable);
        let (short, log) = complete(&python, &model, &[ON]);
        let error = short["error"].as_str().unwrap_or_else(|| panic!("{short}"));
        assert!(error.contains(failed), "{usable} pages: {error}");
        assert!(log.contains("huge pages of 2 MiB"), "{log}");
        assert_eq!(short["huge_after"], 0);
    }
    let prefer = [ON, ("LLAMA_ARG_HUGEPAGE_POLICY", "prefer")];
    assert_eq!(
        complete(&python, &model, &prefer).0["tokens"],
        off["tokens"]
    );
    pool.assert_all_back();
}

/// Python passes the struct by value.
#[test]
#[ignore = "long: make test-full"]
fn the_wheel_has_its_own_version_and_the_size_of_llama_model_params() {
    let python = or_skip!(python::with_wheel());
    let (result, _) = complete(&python, &model(), &[]);
    assert_eq!(
        result["size_of_params"].as_u64(),
        Some(size_of::<ffi::llama_model_params>() as u64)
    );
    let version = result["version"].as_str().expect("a version");
    assert!(version.contains("+hugepages."), "{version}");
}

#[test]
#[ignore = "long: make test-full"]
fn a_second_python_process_attaches_to_the_weights_in_the_store() {
    let python = or_skip!(python::with_wheel());
    let model = model();
    let weights = weights(&python, &model);
    let mut store = or_skip!(Store::with(weights + BUFFERS));
    let dir = store.arg().to_owned();
    let environment = [ON, ("LLAMA_ARG_HUGEPAGE_STORE", dir.as_str())];
    let (first, _) = complete(&python, &model, &environment);
    store.assert_only_files_hold_pages();
    assert!(store.pages() >= weights, "{} pages", store.pages());

    // Room for the buffers, and none for a second copy of the weights.
    store.pool.set(pages(&first) - weights);
    let (second, _) = complete(&python, &model, &environment);
    assert_eq!(second["tokens"], first["tokens"]);
    store.pool.assert_all_back();
}

/// `python -m llama_cpp.server`, killed when the value is dropped.
struct PythonServer {
    child: Child,
    port: Port,
    log: tempfile::NamedTempFile,
}

impl PythonServer {
    fn start(python: &Path, model: &Path, environment: &[(&str, &str)]) -> Self {
        let port = Port::reserve().expect("a port is free");
        let log = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let file = || {
            File::options()
                .append(true)
                .open(log.path())
                .expect("just made")
        };
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(python)
            .args(["-m", "llama_cpp.server", "--model"])
            .arg(model)
            .args([
                "--n_ctx",
                "512",
                "--n_threads",
                "2",
                "--n_threads_batch",
                "2",
            ])
            .args(["--host", "127.0.0.1", "--port", &port.number.to_string()])
            .stdout(file())
            .stderr(file());
        let child = with_environment(&mut command, environment).spawn();
        let mut server = Self {
            child: child.expect("setpriv can be started"),
            port,
            log,
        };
        let is_ready = || {
            let has_ended = server.child.try_wait().expect("our child").is_some();
            has_ended || http::try_get(&server.url("models")).is_some_and(|(code, _)| code == 200)
        };
        let in_time = wait_for(Duration::from_secs(120), is_ready);
        let has_ended = server.child.try_wait().expect("our child").is_some();
        assert!(in_time && !has_ended, "{}", server.log());
        server
    }

    fn log(&self) -> String {
        text(&std::fs::read(self.log.path()).unwrap_or_default())
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1/{path}", self.port.number)
    }

    fn answer(&self) -> Value {
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0 });
        http::post_json(&self.url("completions"), &body)["choices"][0]["text"].clone()
    }

    fn pages(&self) -> u64 {
        smaps::hugetlb_bytes(self.child.id()) / PAGE
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "long: make test-full"]
fn two_python_servers_share_the_weights_in_the_store() {
    let python = or_skip!(python::with_wheel());
    let model = model();
    let weights = weights(&python, &model);
    let store = or_skip!(Store::with(weights + 2 * BUFFERS));
    let dir = store.arg().to_owned();
    let off = PythonServer::start(&python, &model, &[]);
    let expected = off.answer();
    assert_eq!(off.pages(), 0);
    drop(off);

    let plain = PythonServer::start(&python, &model, &[ON]);
    assert_eq!(plain.answer(), expected);
    assert!(plain.pages() > weights, "{} pages", plain.pages());
    assert_eq!(store.pool.taken(), plain.pages());
    drop(plain);
    store.pool.assert_all_back();

    let environment = [ON, ("LLAMA_ARG_HUGEPAGE_STORE", dir.as_str())];
    let both = [0, 1].map(|_| PythonServer::start(&python, &model, &environment));
    for server in &both {
        assert_eq!(server.answer(), expected, "\n{}", server.log());
        assert!(server.pages() > weights, "{} pages", server.pages());
    }
    let shared = both[0].pages() + both[1].pages() - store.pool.taken();
    assert!(shared + 1 >= weights, "{shared} pages are shared");
    let output = run(
        Command::new(programs::hugepages()).args(["store", "list", "--format", "json"]),
        &[("LLAMA_ARG_HUGEPAGE_STORE", dir.as_str())],
    );
    let list = text(&output.stdout);
    for server in &both {
        let pid = server.child.id().to_string();
        assert!(list.contains(&pid), "{pid} is not in {list}");
    }
    drop(both);
    store.assert_only_files_hold_pages();
}

#[test]
#[ignore = "long: make test-full"]
fn unmodified_llama_cpp_2_answers_from_huge_pages_and_one_page_less_is_an_error() {
    let program = or_skip!(programs::with_llama_cpp_2());
    let model = model();
    let generate = |environment: &[(&str, &str)]| {
        let output = run(Command::new(&program).arg(&model), environment);
        let log = text(&output.stderr);
        (output.status.code(), text(&output.stdout), log)
    };
    let huge = |log: &str| {
        let line = log
            .lines()
            .find_map(|line| line.strip_prefix("HugetlbPages:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib = kib.unwrap_or_else(|| panic!("{log}"));
        kib.parse::<u64>().expect("a number") * 1024 / PAGE
    };
    let weights = need::of_program("llama-cpp-2", || generate(&[ON]).2);
    let mut pool = or_skip!(Pool::with(weights + BUFFERS));
    let (code, expected, log) = generate(&[]);
    assert_eq!((code, huge(&log)), (Some(0), 0), "{log}");
    let (code, answer, log) = generate(&[ON]);
    assert_eq!((code, &answer), (Some(0), &expected), "{log}");
    let all = huge(&log);
    assert!(all > weights, "{all} pages, {weights} of them for weights");
    pool.assert_all_back();

    pool.set(all);
    assert_eq!(generate(&[ON]).1, expected);
    for usable in [all - 1, weights - 1] {
        pool.set(usable);
        let (code, _, log) = generate(&[ON]);
        assert_eq!(code, Some(1), "{usable} pages\n{log}");
        assert!(log.contains("huge pages of 2 MiB"), "{log}");
    }
    pool.assert_all_back();
}
