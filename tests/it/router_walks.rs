//! Random walks of a router: three models, pages for one and a half, a store, sleep after a second, and kills.
//!
//! After each step the router lives, no child has aborted, each answer equals that of a direct server, and each refusal is a 503 with the
//! need. `LLAMA_HUGEPAGES_ROUTER_SEED` repeats a walk.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::server::{Launch, Server};
use crate::support::store::Store;
use crate::support::{full, http, models, need, or_skip, wait_for};

const MODELS: [(&str, &str); 3] = [("a", "Q8_0"), ("b", "Q4_0"), ("c", "Q8_0")];

const STEPS: usize = 8;

fn completion(url: &str, model: &str) -> (u16, Value) {
    let body = json!({
        "model": model, "prompt": "Once upon a time", "temperature": 0, "n_predict": 6, "ignore_eos": true
    });
    http::post(&format!("{url}/completion"), &body)
}

/// The processes that a process started and that still run.
fn children(pid: u32) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task");
    let Ok(tasks) = fs::read_dir(path) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.filter_map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

struct Walk<'a> {
    router: Server,
    /// Of a server without a router.
    expected: &'a [Value; 3],
    random: Xoshiro256PlusPlus,
    history: Vec<String>,
    /// Requests that were refused.
    n_refused: usize,
}

impl Walk<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.random.next_u64() % n as u64).expect("less than n")
    }

    fn fail(&self, what: &str) -> ! {
        let history = self.history.join("\n  ");
        panic!("{what}\n  {history}\n{}", self.router.log())
    }

    fn check(&mut self, model: usize, (code, answer): &(u16, Value)) {
        self.history
            .push(format!("{} answered {code}", MODELS[model].0));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        match code {
            200 if answer["content"] == self.expected[model] => {}
            // The need, what is there, and what to do.
            503 if message.contains(" huge pages of 2 MiB")
                && message.contains("usable")
                && message.contains("hint: ") =>
            {
                self.n_refused += 1;
            }
            _ => self.fail(&format!("{code}: {answer}")),
        }
    }

    fn ask(&mut self, model: usize) {
        let answer = completion(&self.router.url(""), MODELS[model].0);
        self.check(model, &answer);
    }

    fn statuses(&self) -> Vec<String> {
        let list = http::get_json(&self.router.url("/models"));
        let models = list["data"].as_array().cloned().unwrap_or_default();
        let status = |item: &Value| item["status"]["value"].as_str().map(str::to_owned);
        models.iter().filter_map(status).collect()
    }

    fn step(&mut self) {
        match self.below(10) {
            0..=4 => {
                let model = self.below(3);
                self.ask(model);
            }
            5 | 6 => {
                let (one, two) = (self.below(3), self.below(3));
                self.history
                    .push(format!("{} and {} at once", MODELS[one].0, MODELS[two].0));
                let url = &self.router.url("");
                let answers = thread::scope(|scope| {
                    let both = [one, two]
                        .map(|model| scope.spawn(move || completion(url, MODELS[model].0)));
                    both.map(|thread| thread.join().expect("a request ends with an answer"))
                });
                self.check(one, &answers[0]);
                self.check(two, &answers[1]);
            }
            7 => {
                self.history.push("sleep".to_owned());
                thread::sleep(Duration::from_millis(1300));
            }
            8 => {
                let model = MODELS[self.below(3)].0;
                self.history.push(format!("unload {model}"));
                // 400 if it is not loaded
                http::post(
                    &self.router.url("/models/unload"),
                    &json!({ "model": model }),
                );
            }
            _ => {
                let killed = children(self.router.pid());
                self.history.push(format!("kill {} children", killed.len()));
                for pid in killed {
                    let _ = kill_process(pid, Signal::KILL);
                }
                // A request to a dead child is an error of the proxy, with or without huge pages.
                let gone = || !self.statuses().iter().any(|status| status != "unloaded");
                if !wait_for(Duration::from_secs(30), gone) {
                    self.fail("the router does not see that its children died");
                }
            }
        }
        let log = self.router.log();
        if self.router.has_ended() || log.contains("GGML_ABORT") || log.contains("GGML_ASSERT") {
            self.fail("a process aborted");
        }
    }
}

#[test]
fn no_walk_of_a_router_aborts_or_lies() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut needs = [0; 3];
    let mut expected = [Value::Null, Value::Null, Value::Null];
    for (i, (name, kind)) in MODELS.into_iter().enumerate() {
        let path = dir.path().join(format!("{name}.gguf"));
        fs::copy(models::demo("20M", kind), &path).expect("the disk has space");
        let launch = Launch::ours().repacked_model(&path);
        needs[i] = need::of(&launch);
        let answer = completion(&launch.start().url(""), name);
        expected[i] = answer.1["content"].clone();
    }
    let most = needs.into_iter().max().expect("three");
    let given = env::var("LLAMA_HUGEPAGES_ROUTER_SEED").map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|_| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("after 1970").as_secs()
    });
    let store = or_skip!(Store::with(most + most / 2));
    let mut n_refused = 0;
    for walk in 0..if full() { 200 } else { 4 } {
        println!("LLAMA_HUGEPAGES_ROUTER_SEED={}", seed + walk);
        let router = Launch::ours()
            .args(["--models-dir".as_ref(), dir.path().as_os_str()])
            .args(["--models-max", "2", "--sleep-idle-seconds", "1"])
            .args(["--hugepages", "--hugepage-store", store.arg()])
            .start();
        let mut walk = Walk {
            router,
            expected: &expected,
            random: Xoshiro256PlusPlus::seed_from_u64(seed + walk),
            history: vec![format!("seed {}", seed + walk)],
            n_refused: 0,
        };
        for _ in 0..STEPS {
            walk.step();
        }
        let Walk {
            router,
            history,
            n_refused: n,
            ..
        } = walk;
        n_refused += n;
        let ended = router.stop(Signal::TERM);
        assert_eq!(ended.status.code(), Some(0), "{history:#?}\n{}", ended.log);
        store.assert_only_files_hold_pages();
        store.empty();
    }
    println!("{n_refused} refusals");
}
