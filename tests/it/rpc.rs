//! A model on several machines: the plan, the answers, and the end of a worker or of its network.
//!
//! The machines are network namespaces. The server is on machine 0, and the workers are on the others, each in a cgroup whose limit on
//! huge pages is smaller than the model.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{self, Output};
use std::slice;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::company::number;
use crate::equality::{PROMPT, answers};
use crate::support::cgroup::{Cgroup, Limit};
use crate::support::network::Network;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::relay::Relay;
use crate::support::server::{Launch, Server};
use crate::support::worker::Worker;
use crate::support::{gguf, http, models, or_skip, plan, smaps, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: usize = 3;
const PORT: u16 = 50052;
/// Pages of four copies of 512 x 1024 activations. llama.cpp's measurement of a context counts them for each worker but the first, because
/// `ggml_backend_sched_reserve_size` forgets on which device the graph puts the first norm of a layer. The load does not allocate them.
const COPIES: u64 = 4 * 512 * 1024 * 4 / PAGE;

/// A server of `cargo xtask tools`, because ours is built without the feature `rpc`. Each worker gets the same share of the layers.
fn client(model: &Path, addresses: &[String]) -> Result<Launch, String> {
    let split = vec!["1"; addresses.len()].join(",");
    let workers = addresses.join(",");
    let launch = Launch::tool("llama-server")?.model(model);
    Ok(launch.args(["--rpc", &workers, "--tensor-split", &split]))
}

/// Three workers on machines of their own, each in a cgroup of its own.
struct Cluster {
    workers: Vec<Worker>,
    cgroups: Vec<Cgroup>,
    network: Network,
}

impl Cluster {
    /// Workers that need pages, and may take `limit` of them.
    fn start(limit: u64) -> Result<Self, String> {
        let network = Network::with(WORKERS + 1)?;
        network.enter(0);
        let mut cluster = Self {
            workers: Vec::new(),
            cgroups: Vec::new(),
            network,
        };
        for machine in 1..=WORKERS {
            let name = format!("llama-hugepages-test-{}-{machine}", process::id());
            let cgroup = Cgroup::named(&name, "max", limit, Limit::Here)?;
            cluster.cgroups.push(cgroup);
            let worker = cluster.start_worker(machine)?;
            cluster.workers.push(worker);
        }
        Ok(cluster)
    }

    fn start_worker(&self, machine: usize) -> Result<Worker, String> {
        let address = format!("{}:{PORT}", Network::address(machine));
        let enter = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;
        let cgroup = self.cgroups[machine - 1].dir.display().to_string();
        let mut wrapper = ["sh", "-c", enter, "sh", &cgroup]
            .map(str::to_owned)
            .to_vec();
        wrapper.extend(self.network.on(machine));
        let options = ["--hugepages", "--hugepage-policy", "require"];
        Worker::start_at(&address, &wrapper, &options)
    }

    fn addresses(&self) -> Vec<String> {
        let address = |worker: &Worker| worker.address.clone();
        self.workers.iter().map(address).collect()
    }

    /// Pages of each worker, as the kernel counts them.
    fn taken(&self) -> Vec<u64> {
        let pages = |worker: &Worker| smaps::hugetlb_bytes(worker.pid()) / PAGE;
        self.workers.iter().map(pages).collect()
    }
}

/// Pages of each worker in a plan, in the order of the workers.
fn planned(plan: &Value, addresses: &[String]) -> Vec<u64> {
    let rows = plan["workers"].as_array().expect("a list");
    let of = |address: &String| {
        let rows = rows.iter().filter(|row| row["worker"] == *address);
        rows.map(|row| row["pages"].as_u64().expect("a number"))
            .sum()
    };
    addresses.iter().map(of).collect()
}

/// Pages of a worker before its compute buffer.
fn planned_before_compute(plan: &Value, address: &str) -> u64 {
    let rows = plan["workers"].as_array().expect("a list").iter();
    let rows = rows.filter(|row| row["worker"] == address && row["kind"] != "compute");
    rows.map(|row| row["pages"].as_u64().expect("a number"))
        .sum()
}

/// Pages that this machine needs.
fn own(plan: &Value) -> u64 {
    plan::pages_by_kind(plan).values().sum()
}

fn planned_by(launch: &Launch) -> (Output, Duration) {
    let start = Instant::now();
    let output = plan::command(launch).output();
    (output.expect("the tool can be started"), start.elapsed())
}

/// Three workers, a server that is not started yet, and a pool with the pages of all of them.
struct Ready {
    launch: Launch,
    plan: Value,
    /// Planned pages of each worker.
    shares: Vec<u64>,
    addresses: Vec<String>,
    cluster: Cluster,
    pool: Pool,
}

impl Ready {
    /// Each worker may take `limit` pages.
    fn with(model: &Path, limit: u64) -> Result<Self, String> {
        let mut pool = Pool::with(0)?;
        let cluster = Cluster::start(limit)?;
        let addresses = cluster.addresses();
        let launch = client(model, &addresses)?.hugepages("require");
        let plan = plan_in(&launch);
        let shares = planned(&plan, &addresses);
        pool.set(own(&plan) + shares.iter().sum::<u64>());
        Ok(Self {
            launch,
            plan,
            shares,
            addresses,
            cluster,
            pool,
        })
    }

    fn end(self) {
        drop(self.cluster);
        self.pool.assert_all_back();
    }
}

/// A question whose answer streams. The reader gets the lines of the answer.
fn ask(server: &Server, tokens: u32) -> mpsc::Receiver<String> {
    let (lines, received) = mpsc::channel();
    let url = server.url("/completion");
    let body = json!({ "prompt": PROMPT, "n_predict": tokens, "temperature": 0, "stream": true, "ignore_eos": true, "cache_prompt": false });
    thread::spawn(move || {
        let Ok(mut response) = ureq::post(url).send_json(&body) else {
            return;
        };
        let reader = BufReader::new(response.body_mut().as_reader());
        for line in reader.lines().map_while(Result::ok) {
            if line.is_empty() {
                continue;
            }
            let _ = lines.send(line);
        }
    });
    received
}

fn text_of(lines: &[String]) -> String {
    let parts = lines.iter().filter_map(|line| line.strip_prefix("data: "));
    let parts = parts.filter_map(|part| serde_json::from_str::<Value>(part).ok());
    parts
        .filter_map(|part| part["content"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn a_build_without_rpc_says_so() {
    let model = models::demo("20M", "Q8_0");
    let launch = Launch::ours().model(&model);
    let refused = |output: &Output| {
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("RPC not supported in this build"), "{log}");
        assert!(log.contains("hint: build llama-server with "), "{log}");
    };
    refused(&planned_by(&launch.clone().args(["--rpc", "127.0.0.1:1"])).0);
    let mut command = plan::command(&launch);
    refused(
        &command
            .env("LLAMA_ARG_RPC", "127.0.0.1:1")
            .output()
            .expect("as above"),
    );
}

#[test]
fn a_worker_that_does_not_listen_or_does_not_answer_is_an_error_with_a_hint() {
    let model = models::demo("20M", "Q8_0");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent_address = silent.local_addr().expect("bound").to_string();
    let cases = [
        ("127.0.0.1:1", "Connection refused", "start ggml-rpc-server"),
        (
            &silent_address,
            "no answer within 5 s",
            "another server uses",
        ),
        ("127.0.0.1", "is not HOST:PORT", "use --rpc HOST:PORT"),
        ("worker.invalid:1", "cannot connect", "correct --rpc"),
    ];
    for (address, cause, hint) in cases {
        let launch = or_skip!(client(&model, &[address.to_owned()]));
        let (output, time) = planned_by(&launch);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{address}: {log}");
        assert!(log.contains(cause) && log.contains(address), "{log}");
        assert!(log.contains("hint: ") && log.contains(hint), "{log}");
        assert!(time < Duration::from_secs(30), "{address}: {time:?}");
        // The server itself ends in the same way.
        launch.hugepages("require").run().assert_clean_failure();
    }
}

#[test]
fn a_client_that_gave_up_while_it_waited_does_not_end_the_worker() {
    let model = models::demo("20M", "Q8_0");
    let worker = or_skip!(Worker::start());
    let launch = or_skip!(client(&model, slice::from_ref(&worker.address)));
    let server = launch.clone().start();
    let (output, _) = planned_by(&launch.clone().hugepages("require"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    server.stop(Signal::TERM);
    launch.start().assert_answers();
}

#[test]
fn workers_take_what_the_plan_prints_and_answer_as_one_machine() {
    let model = models::demo("100M", "Q8_0");
    let all = gguf::pages(&model);
    // Not enough for the weights, and each worker also holds a KV cache and compute buffers.
    let limit = all - 1;
    let mut pool = or_skip!(Pool::with(0));
    let cluster = or_skip!(Cluster::start(limit));
    let addresses = cluster.addresses();
    let launch = or_skip!(client(&model, &addresses)).hugepages("require");
    let (output, _) = planned_by(&launch);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let shares = planned(&plan, &addresses);
    assert!(
        shares.iter().all(|pages| (1..=limit).contains(pages)),
        "{shares:?}, {limit}"
    );

    pool.set(own(&plan) + shares.iter().sum::<u64>());
    let expected = answers(&or_skip!(Launch::tool("llama-server")).model(&model).start());
    let server = launch.start();
    let taken = cluster.taken();
    assert_eq!(taken[0], shares[0], "{taken:?}, {shares:?}");
    for (taken, planned) in taken.iter().zip(&shares) {
        assert!(
            (*taken..=taken + COPIES).contains(planned),
            "{taken} pages, {planned} planned"
        );
    }
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, own(&plan));
    assert_eq!(answers(&server), expected);
    assert_eq!(cluster.taken(), taken, "the answers take no page");
    drop(server);
    let are_back = || cluster.taken().iter().all(|pages| *pages == 0);
    assert!(wait_for(PATIENCE, are_back), "{:?}", cluster.taken());
    drop(cluster);
    pool.assert_all_back();
}

#[test]
fn clients_get_an_error_if_a_worker_ends_and_the_next_server_answers_once_it_is_back() {
    let model = models::demo("100M", "Q8_0");
    let mut ready = or_skip!(Ready::with(&model, gguf::pages(&model)));
    let mut server = ready.launch.clone().args(["--parallel", "2"]).start();
    let expected = server.complete(PROMPT, &json!({ "temperature": 0 }));

    let streamed = ask(&server, 400);
    let whole = thread::spawn({
        let url = server.url("/completion");
        let body = json!({ "prompt": PROMPT, "n_predict": 400, "ignore_eos": true });
        move || http::try_post(&url, &body)
    });
    for _ in 0..3 {
        streamed.recv_timeout(PATIENCE).expect("the answer begins");
    }
    let killed = Instant::now();
    ready.cluster.workers[1].kill();
    let rest: Vec<_> = streamed.iter().collect();
    let told = killed.elapsed();
    let last = rest.last().expect("the answer ends with an error");
    let cause = format!("the RPC server {} ended", ready.addresses[1]);
    assert!(
        last.contains(&cause) && last.contains("503"),
        "{last}\n{}",
        server.log()
    );
    let (status, answer) = whole.join().expect("no panic").expect("an answer");
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains(&cause), "{answer}");
    assert!(
        wait_for(PATIENCE, || server.has_ended()),
        "\n{}",
        server.log()
    );
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(1), "\n{}", ended.log);
    assert!(ended.log.contains(&cause), "\n{}", ended.log);

    // As long as the worker is away, a start fails at once.
    let away = ready.launch.clone().run();
    away.assert_clean_failure();
    assert!(away.log.contains("Connection refused"), "\n{}", away.log);

    let returned = Instant::now();
    ready.cluster.workers[1] = ready.cluster.start_worker(2).expect("as before");
    let server = ready.launch.clone().start();
    println!(
        "the clients know after {told:?}, and the next server is ready {:?} after the worker",
        returned.elapsed()
    );
    assert_eq!(
        server.complete(PROMPT, &json!({ "temperature": 0 })),
        expected
    );
    drop(server);
    ready.end();
}

/// The plan of a launch that already has the options of huge pages.
fn plan_in(launch: &Launch) -> Value {
    let (output, _) = planned_by(launch);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_worker_with_too_few_pages_fails_the_load_with_figures_and_serves_the_next_client() {
    let model = models::demo("100M", "Q8_0");
    let ready = or_skip!(Ready::with(&model, gguf::pages(&model)));
    // The weights fit and the compute buffer does not, then no weights fit.
    for limit in [planned_before_compute(&ready.plan, &ready.addresses[2]), 1] {
        ready.cluster.cgroups[2].set("max", limit);
        let ended = ready.launch.clone().run();
        ended.assert_clean_failure();
        assert!(ended.log.contains(&ready.addresses[2]), "\n{}", ended.log);
        let log = ready.cluster.workers[2].log();
        assert!(log.contains("huge pages of 2 MiB"), "\n{log}");
        assert!(log.contains("hint: "), "\n{log}");
    }
    ready.cluster.cgroups[2].set("max", ready.shares[2]);
    ready.launch.clone().start().assert_answers();
    ready.end();
}

#[test]
#[ignore = "cuts the network for ten seconds"]
fn an_answer_continues_after_ten_seconds_without_a_network() {
    let model = models::demo("100M", "Q8_0");
    let ready = or_skip!(Ready::with(&model, gguf::pages(&model)));
    let server = ready.launch.clone().start();
    let expected = text_of(&ask(&server, 200).iter().collect::<Vec<_>>());

    let answer = ask(&server, 200);
    let mut lines = vec![answer.recv_timeout(PATIENCE).expect("the answer begins")];
    ready.cluster.network.set_cable(2, false);
    thread::sleep(Duration::from_secs(10));
    lines.extend(answer.try_iter());
    assert!(
        !lines.last().expect("a line").contains("\"stop\":true"),
        "{lines:?}"
    );
    ready.cluster.network.set_cable(2, true);
    let repaired = Instant::now();
    lines.push(answer.recv_timeout(PATIENCE).expect("the answer continues"));
    let waited = repaired.elapsed();
    lines.extend(answer.iter());
    assert_eq!(text_of(&lines), expected);
    println!("the answer continues {waited:?} after the network is back");
    drop(server);
    ready.end();
}

/// Memory in bytes and open files of the server and of each worker.
fn held(server: &Server, cluster: &Cluster) -> Vec<(u64, usize)> {
    let pids = cluster.workers.iter().map(Worker::pid);
    let pids = pids.chain([server.pid()]);
    let files = |pid| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .count()
    };
    pids.map(|pid| (smaps::status_bytes(pid, "RssAnon"), files(pid)))
        .collect()
}

#[test]
#[ignore = "a hundred thousand requests"]
fn many_requests_leave_no_growth() {
    let requests = number("LLAMA_HUGEPAGES_SOAK_REQUESTS").unwrap_or(100_000);
    let model = models::demo("20M", "Q8_0");
    let ready = or_skip!(Ready::with(&model, 5 * gguf::pages(&model)));
    let server = ready.launch.clone().args(["--parallel", "2"]).start();
    let url = server.url("/completion");
    let send = |count: u64| {
        thread::scope(|scope| {
            for client in 0..2 {
                let url = &url;
                scope.spawn(move || {
                    for i in 0..count / 2 {
                        let body = json!({ "prompt": [3 + client, 4 + i % 90], "n_predict": 1 });
                        http::post_json(url, &body);
                    }
                });
            }
        });
    };
    // Caches of the allocator, the prompt cache and threads grow only once.
    send(requests / 10);
    let (before, pages) = (held(&server, &ready.cluster), ready.cluster.taken());
    send(requests);
    let after = held(&server, &ready.cluster);
    println!("{requests} requests: {before:?}, then {after:?}");
    assert_eq!(ready.cluster.taken(), pages);
    for ((memory, files), (memory_after, files_after)) in before.into_iter().zip(after) {
        // Less than 16 bytes for each request.
        assert!(memory_after < memory + (1 << 20) + requests * 16);
        // A connection of the last request may still be open.
        assert!(files_after <= files + 2);
    }
    drop(server);
    ready.end();
}

/// The server is killed while its network is down, so the worker never gets the end of the connection.
#[test]
#[ignore = "waits for the kernel to give up a connection"]
fn a_worker_serves_the_next_client_a_minute_after_the_machine_of_a_client_is_gone() {
    let model = models::demo("20M", "Q8_0");
    // The compute buffers are larger than this model.
    let ready = or_skip!(Ready::with(&model, 5 * gguf::pages(&model)));
    let server = ready.launch.clone().start();
    assert!(ready.cluster.taken().iter().all(|pages| *pages > 0));
    ready.cluster.network.set_cable(0, false);
    drop(server);
    let gone = Instant::now();
    // The dead connection of the kernel must not come back to life with the network.
    let are_back = || ready.cluster.taken().iter().all(|pages| *pages == 0);
    assert!(
        wait_for(Duration::from_secs(120), are_back),
        "{:?}",
        ready.cluster.taken()
    );
    println!(
        "the workers have returned their pages after {:?}",
        gone.elapsed()
    );
    ready.cluster.network.set_cable(0, true);
    // The kernel remembers for a while that it found no neighbour.
    let is_there = |address: &String| TcpStream::connect(address).is_ok();
    assert!(wait_for(PATIENCE, || ready.addresses.iter().all(is_there)));
    assert!(wait_for(PATIENCE, || Counts::read().usable()
        == ready.pool.counts.usable()));
    ready.launch.clone().start().assert_answers();
    ready.end();
}

/// 1 ms for a round trip.
#[test]
#[ignore = "is slow: each token waits for three delayed networks"]
fn answers_over_a_delayed_network_are_those_of_one_machine() {
    let model = models::demo("100M", "Q8_0");
    let ready = or_skip!(Ready::with(&model, gguf::pages(&model)));
    let relays: Vec<_> = ready
        .addresses
        .iter()
        .map(|address| Relay::start(&Network::address(0), address, Duration::from_micros(500)))
        .collect();
    let addresses: Vec<_> = relays.iter().map(|relay| relay.address.clone()).collect();
    let expected = answers(&or_skip!(Launch::tool("llama-server")).model(&model).start());
    let server = or_skip!(client(&model, &addresses))
        .hugepages("require")
        .start();
    assert_eq!(answers(&server), expected);
    drop(server);
    ready.end();
}
