//! The KV cache stays in a store when the server ends. The next server continues its conversations.
//!
//! `LLAMA_HUGEPAGES_KILL_SEED` repeats a round of the kills, from an empty store. No round begins after `LLAMA_HUGEPAGES_KILL_SECONDS`.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::company::number;
use crate::support::pool::PAGE;
use crate::support::server::{Launch, Server};
use crate::support::store::{self, Store};
use crate::support::{full, http, is_root, models, or_skip, plan, programs, wait_for};

/// More pages than any server here needs.
const PAGES: u64 = 300;

const NOBODY: u32 = 65534;

/// Some hundred tokens of text. Random weights answer with random tokens, so a prompt repeats them as numbers.
fn opening(who: u64) -> Vec<u64> {
    text(who, 300)
}

fn text(who: u64, tokens: u64) -> Vec<u64> {
    (0..tokens)
        .map(|i| 3 + (i * 7 + who * 131 + i / 200 * 11) % 200)
        .collect()
}

/// Makes each prompt longer than the window of 512 tokens and what the cache has beside it, and decodes it in several steps.
const LONG_PROMPT: u64 = 1000;
const SMALL_BATCHES: &str = "--batch-size 512 --ubatch-size 128";

/// A kind of KV cache.
#[derive(Clone, Copy)]
struct Kind {
    arch: &'static str,
    /// Of the server, separated by spaces.
    options: &'static str,
    /// Of the model.
    size: &'static str,
}

impl Kind {
    fn new((arch, options): (&'static str, &'static str)) -> Self {
        Self {
            arch,
            options,
            size: "100M",
        }
    }

    fn has_window(&self) -> bool {
        self.arch == "gemma3"
    }

    fn server(&self) -> Launch {
        let options: Vec<_> = self.options.split_whitespace().collect();
        let model = models::demo_with(self.size, "Q8_0", &["--arch", self.arch]);
        let batches = if self.has_window() { SMALL_BATCHES } else { "" };
        Launch::ours()
            .model(&model)
            .args(["--ctx-size", "2048"])
            .args(batches.split_whitespace())
            .args(options)
    }

    fn kept(&self, store: &Store) -> Launch {
        self.server().hugepages("require").args([
            "--hugepage-store",
            store.arg(),
            "--hugepage-keep-context",
        ])
    }

    fn opening(&self, who: u64) -> Vec<u64> {
        text(who, if self.has_window() { LONG_PROMPT } else { 300 })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.arch, self.options)
    }
}

fn launch(store: &Store, options: &[&str]) -> Launch {
    kept(store.arg(), options)
}

fn kept(store: &str, options: &[&str]) -> Launch {
    with(options)
        .hugepages("require")
        .args(["--hugepage-store", store, "--hugepage-keep-context"])
}

fn with(options: &[&str]) -> Launch {
    Launch::ours()
        .model(&models::demo("100M", "Q8_0"))
        .args(["--ctx-size", "2048"])
        .args(options)
}

/// One turn of a conversation.
struct Turn {
    /// With every field that depends on the logits.
    answer: Value,
    /// Prompt and answer.
    history: Vec<u64>,
    /// Tokens that the server computed for the prompt.
    computed: u64,
}

/// The slot that the server chooses: the prompt that it replaces goes to the prompt cache.
const ANY_SLOT: i64 = -1;

fn ask(server: &Server, history: &[u64], slot: usize) -> Turn {
    ask_in(server, history, i64::try_from(slot).expect("a few slots"))
}

fn ask_in(server: &Server, history: &[u64], slot: i64) -> Turn {
    let body = json!({
        "prompt": history, "n_predict": 24, "n_probs": 10, "return_tokens": true, "cache_prompt": true, "temperature": 0,
        "ignore_eos": true, "id_slot": slot,
    });
    let reply = http::post_json(&server.url("/completion"), &body);
    let tokens = reply["tokens"]
        .as_array()
        .unwrap_or_else(|| panic!("{reply}"));
    let mut history = history.to_vec();
    history.extend(tokens.iter().map(|token| token.as_u64().expect("a token")));
    Turn {
        answer: json!({ "tokens": reply["tokens"], "probabilities": reply["completion_probabilities"] }),
        history,
        computed: reply["timings"]["prompt_n"].as_u64().expect("a number"),
    }
}

/// The next message of a user.
fn and(history: &[u64], message: u64) -> Vec<u64> {
    let mut next = history.to_vec();
    next.extend((0..10).map(|i| 50 + message * 10 + i));
    next
}

/// The client's next prompt. The last time, the user changes the message before the last answer: the KV cache holds the tokens in front of
/// this message, but a recurrent state needs a checkpoint.
fn after(said: &Turn, prompt: &[u64], turn: u64) -> Vec<u64> {
    if turn == 1 {
        and(&prompt[..prompt.len() - 2], turn)
    } else {
        and(&said.history, turn)
    }
}

/// Waits for the first token of slot 0.
fn wait_for_an_answer(server: &Server) {
    let slots = server.url("/slots");
    let has_answered =
        || http::get_json(&slots)[0]["next_token"][0]["n_decoded"].as_u64() > Some(0);
    assert!(
        wait_for(Duration::from_secs(60), has_answered),
        "{}",
        server.log()
    );
}

fn continued(server: &Server) -> Vec<u64> {
    let log = server.log();
    log.lines()
        .filter_map(|line| line.split_once(" continues with "))
        .map(|(_, rest)| {
            rest.split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .expect("a number")
        })
        .collect()
}

/// The files of contexts in the store.
fn contexts(store: &Store) -> Vec<PathBuf> {
    let is_context = |path: &PathBuf| path.to_string_lossy().contains(".kv-");
    store.images().into_iter().filter(is_context).collect()
}

fn context(store: &Store) -> PathBuf {
    let mut found = contexts(store);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_restart_computes_new_tokens_only_and_answers_as_a_server_that_never_ended() {
    let kinds = [
        ("llama", ""),
        ("llama", "--flash-attn off"),
        (
            "llama",
            "--flash-attn on --cache-type-k q8_0 --cache-type-v q4_0",
        ),
        ("llama", "--parallel 2 --kv-unified"),
        ("llama", "--parallel 2 --no-kv-unified"),
        ("gemma3", ""),
        ("gemma3", "--flash-attn off --swa-full"),
        (
            "gemma3",
            "--parallel 2 --kv-unified --swa-full --ctx-size 4096",
        ),
        ("gemma3", "--parallel 2 --no-kv-unified --ctx-size 4096"),
        ("lfm2", ""),
        ("lfm2", "--parallel 2 --kv-unified"),
        ("lfm2", "--parallel 2 --no-kv-unified"),
    ]
    .map(Kind::new);
    for kind in kinds {
        let slots = 1 + u64::from(kind.options.contains("--parallel"));
        let mut expected = Vec::new();
        let server = kind.server().args(["--no-cache-idle-slots"]).start();
        let mut talks: Vec<_> = (0..slots).map(|slot| kind.opening(slot)).collect();
        for turn in 0..3 {
            for (slot, talk) in talks.iter_mut().enumerate() {
                let said = ask(&server, talk, slot);
                *talk = after(&said, talk, turn);
                assert!(turn < 2 || said.computed < 100, "{kind}");
                expected.push((said.answer, said.computed));
            }
        }
        drop(server);

        let store = or_skip!(Store::with(PAGES));
        let mut expected = expected.into_iter();
        let mut talks: Vec<_> = (0..slots).map(|slot| kind.opening(slot)).collect();
        for turn in 0..3 {
            let server = kind.kept(&store).start();
            assert_eq!(
                continued(&server).len(),
                if turn == 0 { 0 } else { talks.len() },
                "{kind}\n{}",
                server.log()
            );
            for (slot, talk) in talks.iter_mut().enumerate() {
                let said = ask(&server, talk, slot);
                *talk = after(&said, talk, turn);
                let (answer, computed) = expected.next().expect("as many turns");
                assert_eq!(
                    said.computed,
                    computed,
                    "{kind}, turn {turn}, slot {slot}\n{}",
                    server.log()
                );
                assert_eq!(said.answer, answer, "{kind}, turn {turn}, slot {slot}");
            }
            let ended = server.stop(Signal::TERM);
            assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
            store.assert_only_files_hold_pages();
        }
        store.empty();
        store.pool.assert_all_back();
    }
}

/// Two conversations in one slot: the server saves the one that the other replaces.
struct Talks([Vec<u64>; 2]);

impl Talks {
    fn new(kind: &Kind) -> Self {
        // A state of LFM2 is small, and a file has at least a page.
        let opening = |who| match kind.arch {
            "lfm2" => text(who, LONG_PROMPT),
            _ => kind.opening(who),
        };
        Self([opening(0), opening(1)])
    }

    /// Both, first the one that is in the slot. Answers, and tokens that the server computed for the prompts.
    fn ask(&mut self, server: &Server, turn: u64) -> Vec<(Value, u64)> {
        let mut turns = Vec::new();
        for which in [turn % 2, 1 - turn % 2] {
            let talk = &mut self.0[which as usize];
            let said = ask_in(server, talk, ANY_SLOT);
            *talk = and(&said.history, turn);
            turns.push((said.answer, said.computed));
        }
        turns
    }
}

/// The server saved one of the conversations, and has the other in its slot.
fn saved(store: &Store) -> usize {
    contexts(store).len() - 1
}

#[test]
fn saved_prompts_remain_after_a_restart_and_after_a_kill() {
    let kinds = [
        ("llama", ""),
        ("llama", "--flash-attn off"),
        ("llama", "--flash-attn on --cache-type-k q8_0"),
        ("gemma3", ""),
        ("lfm2", ""),
    ]
    .map(Kind::new);
    for kind in kinds {
        let server = kind.server().args(["--no-cache-idle-slots"]).start();
        let mut talks = Talks::new(&kind);
        let expected: Vec<_> = (0..3).map(|turn| talks.ask(&server, turn)).collect();
        drop(server);

        let store = or_skip!(Store::with(PAGES));
        let mut talks = Talks::new(&kind);
        for (turn, end) in [Signal::TERM, Signal::KILL, Signal::TERM]
            .into_iter()
            .enumerate()
        {
            let server = kind.kept(&store).start();
            let said = talks.ask(&server, turn as u64);
            // A killed server leaves no recurrent state that a decode could have changed.
            let is_lost = turn == 2 && kind.arch == "lfm2";
            if !is_lost {
                let counts =
                    |turns: &[(Value, u64)]| turns.iter().map(|turn| turn.1).collect::<Vec<_>>();
                assert_eq!(
                    counts(&said),
                    counts(&expected[turn]),
                    "{kind}, turn {turn}\n{}",
                    server.log()
                );
                assert_eq!(
                    said,
                    expected[turn],
                    "{kind}, turn {turn}\n{}",
                    server.log()
                );
            }
            assert_eq!(saved(&store), 1, "{kind}\n{}", server.log());
            server.stop(end);
            store.assert_only_files_hold_pages();
        }
        store.empty();
        store.pool.assert_all_back();
    }
}

/// A server with one conversation in its slot and one that it has saved.
fn with_a_saved_prompt(store: &Store, options: &'static str) -> (Server, Talks) {
    let kind = Kind::new(("llama", options));
    let server = kind.kept(store).start();
    let mut talks = Talks::new(&kind);
    talks.ask(&server, 0);
    assert_eq!(saved(store), 1, "{}", server.log());
    (server, talks)
}

#[test]
fn a_damaged_prompt_is_found_and_computed_again() {
    let store = or_skip!(Store::with(PAGES));
    let (server, talks) = with_a_saved_prompt(&store, "");
    let files = contexts(&store).into_iter();
    // The KV cache has room for more tokens.
    let prompt = files
        .min_by_key(|file| fs::metadata(file).expect("it exists").len())
        .expect("two files");
    // A byte of the state, far behind the tokens.
    store::patch(&prompt, 1 << 20, |bytes| bytes[0] ^= 1, 1);
    let verified = Command::new(programs::hugepages())
        .args(["store", "verify", "--store", store.arg()])
        .output()
        .expect("the tool can be started");
    assert_eq!(verified.status.code(), Some(5), "{verified:?}");
    let said = ask_in(&server, &talks.0[0], ANY_SLOT);
    assert_eq!(said.computed, talks.0[0].len() as u64, "{}", server.log());
    assert!(server.log().contains("is damaged"), "{}", server.log());
    drop(server);
    store.empty();
    store.pool.assert_all_back();
}

#[test]
fn a_load_that_is_short_of_pages_removes_saved_prompts() {
    let mut store = or_skip!(Store::with(PAGES));
    let (server, talks) = with_a_saved_prompt(&store, "");
    let other = Launch::ours()
        .model(&models::demo("20M", "Q8_0"))
        .args(["--ctx-size", "256"])
        .hugepages("require")
        .args(["--hugepage-store", store.arg()]);
    let need: u64 = plan::pages_by_kind(&plan::of(&other)).values().sum();
    store.pool.set(need - 1);
    let log = other.start().log();
    assert!(log.contains("removed a saved prompt"), "{log}");
    assert_eq!(saved(&store), 0, "{log}");
    let turn = ask_in(&server, &talks.0[0], ANY_SLOT);
    assert_eq!(
        turn.computed,
        talks.0[0].len() as u64,
        "no tokens from a file that is gone\n{}",
        server.log()
    );
    drop(server);
}

/// A server that ends waits for its clients, and a service manager may lose its patience.
#[test]
fn checkpoints_remain_if_a_server_is_killed_while_it_waits_for_a_client() {
    let kind = Kind::new(("lfm2", ""));
    let store = or_skip!(Store::with(PAGES));
    let server = kind.kept(&store).start();
    let prompt = kind.opening(0);
    let url = server.url("/completion");
    let body = json!({
        "prompt": prompt, "n_predict": 1500, "cache_prompt": true, "ignore_eos": true, "id_slot": 0,
    });
    let asked = thread::spawn(move || http::try_post(&url, &body).is_ok());
    wait_for_an_answer(&server);
    server.signal(Signal::TERM);
    // The server now waits for its clients.
    let waits = || server.log().contains("cleaning up before exit");
    assert!(wait_for(Duration::from_secs(30), waits), "{}", server.log());
    assert_eq!(saved(&store), 1, "{}", server.log());
    drop(server); // killed
    let is_answered = asked.join().expect("no panic");
    assert!(!is_answered, "the server ended without its client");

    let server = kind.kept(&store).start();
    let said = ask(&server, &and(&prompt[..prompt.len() - 2], 1), 0);
    assert!(said.computed < 100, "{}\n{}", said.computed, server.log());
    drop(server);
    store.empty();
    store.pool.assert_all_back();
}

#[test]
fn a_wiped_context_leaves_no_saved_prompts() {
    let store = or_skip!(Store::with(PAGES));
    let (server, _) = with_a_saved_prompt(&store, "--hugepage-wipe-context");
    server.stop(Signal::TERM);
    assert_eq!(contexts(&store), Vec::<PathBuf>::new());
    store.empty();
    store.pool.assert_all_back();
}

/// Tiny models of upstream's own test: one for each class of memory, and whether it is kept. The long test has all models.
const ARCHITECTURES: [(&str, bool); 9] = [
    ("gpt-oss-moe", true),
    ("llama4-moe", true),
    ("qwen2vl-dense", true),
    ("jamba-dense", true),
    ("qwen3next-moe", true),
    ("qwen35-dense", true),
    ("glm5-next-moe", false),
    ("deepseek32-moe", false),
    ("minimax-m3-moe", false),
];

/// Whether the server kept the context of this model.
fn answers_after_a_restart_as_before(store: &Store, model: &Path) -> bool {
    let name = model.display();
    let launch = Launch::ours()
        .model(model)
        .args(["--ctx-size", "4096"])
        .args(["--batch-size", "32", "--ubatch-size", "16"])
        .hugepages("require")
        .args(["--hugepage-store", store.arg(), "--hugepage-keep-context"]);
    let opening: Vec<u64> = (0..60).map(|i| 3 + i * 7 % 90).collect();
    let server = launch.clone().start();
    let first = ask(&server, &opening, 0);
    let message = and(&first.history, 1);
    let second = ask(&server, &message, 0);
    drop(server);
    store.empty();

    let server = launch.clone().start();
    let is_kept = !server.log().contains("no conversation will remain");
    assert_eq!(ask(&server, &opening, 0).answer, first.answer, "{name}");
    server.stop(Signal::TERM);
    let server = launch.start();
    assert_eq!(!continued(&server).is_empty(), is_kept, "{name}");
    let said = ask(&server, &message, 0);
    if is_kept {
        assert_eq!(said.computed, second.computed, "{name}\n{}", server.log());
        assert_eq!(said.answer, second.answer, "{name}");
    }
    drop(server);
    store.empty();
    is_kept
}

#[test]
fn every_kind_of_memory_is_continued_or_not_kept() {
    let tool = or_skip!(programs::patched("test-llama-archs"));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let made = Command::new(tool).arg("-o").arg(dir.path()).output();
    assert!(made.expect("the tool can be started").status.success());
    let store = or_skip!(Store::with(PAGES));
    for (name, is_kept) in ARCHITECTURES {
        let model = dir.path().join(format!("{name}.gguf"));
        assert_eq!(
            answers_after_a_restart_as_before(&store, &model),
            is_kept,
            "{name}"
        );
    }
    for entry in fs::read_dir(dir.path()).expect("just made") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        // These generate by diffusion, which the server does not offer.
        let is_diffusion = ["dream", "llada", "rnd1"]
            .iter()
            .any(|it| name.starts_with(it));
        if full() && !is_diffusion {
            answers_after_a_restart_as_before(&store, &path);
        }
    }
    store.pool.assert_all_back();
}

/// The order of the cells changes the last bits of a result, so the next server must use the cells that a new one would use.
#[test]
fn the_next_server_computes_a_new_prompt_as_if_none_had_been_killed() {
    let kinds = ["llama", "gemma3", "lfm2"].map(|arch| Kind::new((arch, "")));
    let store = or_skip!(Store::with(PAGES));
    for kind in kinds {
        let expected = ask(&kind.server().start(), &kind.opening(2), 0).answer;
        for delay in [10, 30, 90] {
            let server = kind.kept(&store).start();
            ask(&server, &kind.opening(0), 0);
            let url = server.url("/completion");
            let body = json!({ "prompt": text(1, LONG_PROMPT), "n_predict": 1, "id_slot": 0 });
            let asked = thread::spawn(move || http::try_post(&url, &body).is_ok());
            thread::sleep(Duration::from_millis(delay));
            server.stop(Signal::KILL);
            asked.join().expect("no panic");
            let said = ask(&kind.kept(&store).start(), &kind.opening(2), 0);
            assert_eq!(said.answer, expected, "{kind}, killed after {delay} ms");
            store.empty();
        }
    }
    store.pool.assert_all_back();
}

const KILLED: [(&str, &str); 5] = [
    ("llama", "--ctx-size 512"),
    ("llama", "--ctx-size 512 --flash-attn off"),
    (
        "llama",
        "--ctx-size 512 --flash-attn on --cache-type-k q8_0",
    ),
    ("gemma3", ""),
    ("lfm2", ""),
];

/// A killed server leaves what its last complete decode left: the next one answers as a server that was asked for so many tokens.
fn killed_servers_leave_whole_tokens(rounds: u64) {
    let given = number("LLAMA_HUGEPAGES_KILL_SEED");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let first = given.unwrap_or_else(|| now.expect("after 1970").as_secs());
    let rounds = if given.is_some() { 1 } else { rounds };
    let last = number("LLAMA_HUGEPAGES_KILL_SECONDS").unwrap_or(u64::MAX);
    let begun = Instant::now();
    // A small model: more kills in the same time.
    let kinds = KILLED.map(|kind| Kind {
        size: "20M",
        ..Kind::new(kind)
    });
    let store = or_skip!(Store::with(PAGES));
    let (mut kept_some, mut done) = (0, 0);
    for round in first..first + rounds {
        if begun.elapsed().as_secs() >= last {
            break;
        }
        done += 1;
        println!("LLAMA_HUGEPAGES_KILL_SEED={round}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(round);
        let mut next = |below: u64| random.next_u64() % below;
        let kind = &kinds[next(5) as usize];
        // A cache with windows moves no positions, and neither does a recurrent state.
        let shifts = next(4) == 3 && kind.arch == "llama";
        let shift: &[&str] = if shifts { &["--context-shift"] } else { &[] };
        let server = kind.kept(&store).args(shift).start();
        let before = continued(&server);
        let (mut talk, mut whole) = (kind.opening(round), kind.opening(round));
        // A server without the option goes back to a checkpoint if the window holds all tokens.
        let shortest = if kind.has_window() { 600 } else { 20 };
        talk.truncate((shortest + next(talk.len() as u64 - shortest)) as usize);
        let (url, body) = (
            server.url("/completion"),
            json!({
                "prompt": talk, "n_predict": 1000, "cache_prompt": false, "ignore_eos": true, "temperature": 0, "id_slot": 0,
            }),
        );
        let asked = thread::spawn(move || http::try_post(&url, &body).is_ok());
        if next(2) == 0 {
            // A slow machine would be killed in the prompt every time.
            wait_for_an_answer(&server);
        }
        let most = if shifts { 1500 } else { 400 };
        thread::sleep(Duration::from_millis(next(most)));
        server.stop(Signal::KILL);
        let _ = asked.join();

        let server = kind.kept(&store).start();
        let log = server.log();
        assert!(!log.contains("damaged"), "round {round}\n{log}");
        let kept = continued(&server).first().copied().unwrap_or(0);
        let length = talk.len() as u64;
        let most = if kind.has_window() { 2000 } else { 500 };
        // A shorter rest is a part of the prompt, or that of the round before.
        let is_exact = !shifts && kept >= length && kept < most && before.first() != Some(&kept);
        kept_some += u64::from(is_exact);
        let plain = kind.server().start();
        if is_exact {
            let reply = http::post_json(
                &plain.url("/completion"),
                &json!({
                    "prompt": talk, "n_predict": kept - length + 1, "cache_prompt": false, "ignore_eos": true, "temperature": 0,
                    "id_slot": 0, "return_tokens": true,
                }),
            );
            let answer = reply["tokens"].as_array().expect("a list");
            talk.extend(answer.iter().map(|token| token.as_u64().expect("a token")));
            whole = and(&talk, 1);
        }
        let said = ask(&server, &whole, 0);
        let expected = ask(&plain, &whole, 0);
        if is_exact {
            assert_eq!(
                said.answer, expected.answer,
                "round {round}, {kind}, {kept} tokens kept, prompt of {length}"
            );
            assert_eq!(said.computed, expected.computed, "round {round}");
        } else {
            // Another number of tokens in a batch changes the last bits, and a model with random weights makes much of them.
            let first = |turn: &Turn| {
                turn.answer["probabilities"][0]["top_logprobs"][0]["logprob"]
                    .as_f64()
                    .expect("a number")
            };
            let difference = (first(&said) - first(&expected)).abs();
            assert!(difference < 0.3, "round {round}, {kind}: {difference}");
        }
    }
    println!("{kept_some} of {done} rounds compared bit for bit");
    assert!(kept_some > 0 || done < 8);
    store.assert_only_files_hold_pages();
    store.empty();
    store.pool.assert_all_back();
}

#[test]
fn a_server_that_is_killed_at_a_random_moment_leaves_no_wrong_token() {
    killed_servers_leave_whole_tokens(if full() { 1000 } else { 8 });
}

#[test]
fn a_sleeping_server_wakes_with_its_conversations() {
    let store = or_skip!(Store::with(PAGES));
    let server = launch(&store, &["--sleep-idle-seconds", "1"]).start();
    let first = ask(&server, &opening(0), 0);
    assert!(
        wait_for(Duration::from_secs(30), || server.is_asleep()),
        "{}",
        server.log()
    );
    let second = ask(&server, &and(&first.history, 1), 0);
    assert!(
        second.computed < 20,
        "{} tokens\n{}",
        second.computed,
        server.log()
    );
    assert_eq!(continued(&server).len(), 1, "{}", server.log());
}

#[test]
fn a_context_is_used_by_one_server_and_read_by_no_other_user() {
    let store = or_skip!(Store::with(PAGES));
    let first = launch(&store, &[]).start();
    let said = ask(&first, &opening(0), 0);
    let mode = fs::metadata(context(&store))
        .expect("it exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let second = launch(&store, &[]).start();
    let log = second.log();
    let line = format!("process {} uses", first.pid());
    assert_eq!(
        log.matches("no conversation will remain").count(),
        1,
        "{log}"
    );
    assert!(log.contains(&line), "{log}");
    assert_eq!(ask(&second, &opening(0), 0).answer, said.answer);
    drop(second);

    let third = ask(&first, &and(&said.history, 1), 0);
    assert!(third.computed < 20);
}

/// In a store for all users, as `/tmp` is.
#[test]
fn each_user_has_a_context_of_their_own() {
    if !is_root() {
        return crate::support::skip("only root can become another user");
    }
    let store = or_skip!(Store::with_options(PAGES, "mode=1777"));
    let said = ask(&launch(&store, &[]).start(), &opening(0), 0);
    let server = launch(&store, &[]).under_uid(NOBODY).start();
    assert_eq!(continued(&server), Vec::<u64>::new(), "{}", server.log());
    assert_eq!(ask(&server, &opening(0), 0).answer, said.answer);
    drop(server);
    let owners: Vec<_> = contexts(&store)
        .iter()
        .map(|path| fs::metadata(path).expect("it exists").uid())
        .collect();
    assert!(
        owners.len() == 2 && owners.contains(&0) && owners.contains(&NOBODY),
        "{owners:?}"
    );
    for uid in [0, NOBODY] {
        let server = if uid == 0 {
            launch(&store, &[])
        } else {
            launch(&store, &[]).under_uid(uid)
        }
        .start();
        assert_eq!(continued(&server).len(), 1, "user {uid}\n{}", server.log());
    }
}

#[test]
fn another_context_is_not_continued() {
    let store = or_skip!(Store::with(PAGES));
    drop(ask(&launch(&store, &[]).start(), &opening(0), 0));
    let others: [&[&str]; 4] = [
        &["--ctx-size", "1024"],
        &["--cache-type-k", "q8_0"],
        &["--rope-freq-scale", "0.5"],
        &["--parallel", "2"],
    ];
    for other in others {
        let server = launch(&store, other).start();
        assert_eq!(
            continued(&server),
            Vec::<u64>::new(),
            "{other:?}\n{}",
            server.log()
        );
        server.assert_answers();
    }
    let same = launch(&store, &[]).start();
    assert_eq!(continued(&same).len(), 1, "{}", same.log());
}

#[test]
fn a_context_that_contradicts_itself_is_not_used() {
    let store = or_skip!(Store::with(PAGES));
    let said = ask(&launch(&store, &[]).start(), &opening(0), 0);
    let file = context(&store);
    let size = fs::metadata(&file).expect("it exists").len();
    // The journal is in the last pages, in front of the manifest: every number there becomes impossible.
    let journal = size - PAGE;
    store::patch(
        &file,
        journal,
        |bytes| {
            for byte in &mut bytes[..32 << 10] {
                *byte = if *byte == 0 { 0 } else { 0x7f };
            }
        },
        32 << 10,
    );
    let server = launch(&store, &[]).start();
    assert!(
        server.log().contains("journal is damaged"),
        "{}",
        server.log()
    );
    assert_eq!(ask(&server, &opening(0), 0).answer, said.answer);
}

#[test]
fn the_store_lists_and_drops_a_context() {
    let store = or_skip!(Store::with(PAGES));
    let server = launch(&store, &[]).start();
    ask(&server, &opening(0), 0);
    let tool = |args: &[&str]| {
        let output = Command::new(programs::hugepages())
            .arg("store")
            .args(args)
            .args(["--store", store.arg()])
            .output();
        output.expect("the tool can be started")
    };
    let name = context(&store)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .expect("a name");
    let listed = tool(&["list", "--format", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout)
        .unwrap_or_else(|error| panic!("{error}: {listed:?}"));
    let models = listed["models"]
        .as_array()
        .unwrap_or_else(|| panic!("{listed}"));
    let mut images = models
        .iter()
        .filter_map(|model| model["images"].as_array())
        .flatten();
    let row = images
        .rfind(|image| image["name"] == json!(name))
        .unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(row["kind"], json!("kv"), "{row}");
    assert_eq!(row["segments"], row["complete"], "{row}");
    let verified = tool(&["verify", &name]);
    assert!(verified.status.success(), "{verified:?}");
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(text.contains("unchecked"), "{text}");
    assert!(!tool(&["drop", &name]).status.success(), "a server uses it");
    // The drop of a context also removes its saved prompts.
    ask_in(&server, &opening(1), ANY_SLOT);
    assert_eq!(saved(&store), 1, "{}", server.log());
    drop(server);
    assert!(tool(&["drop", &name]).status.success());
    assert_eq!(contexts(&store), Vec::<PathBuf>::new());
}

#[test]
fn a_wiped_context_is_gone_when_the_server_has_ended() {
    let store = or_skip!(Store::with(PAGES));
    let server = launch(&store, &["--hugepage-wipe-context"]).start();
    ask(&server, &opening(0), 0);
    assert_eq!(contexts(&store).len(), 1);
    let ended = server.stop(Signal::TERM);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    assert_eq!(contexts(&store), Vec::<PathBuf>::new());
    store.assert_only_files_hold_pages();
}

/// The one sleeps, the other takes its conversations over.
#[test]
fn a_server_wipes_no_context_of_another_server() {
    let store = or_skip!(Store::with(PAGES));
    let options = ["--hugepage-wipe-context", "--sleep-idle-seconds", "1"];
    let first = launch(&store, &options).start();
    let said = ask(&first, &opening(0), 0);
    assert!(
        wait_for(Duration::from_secs(30), || first.is_asleep()),
        "{}",
        first.log()
    );
    let second = launch(&store, &[]).start();
    assert_eq!(continued(&second).len(), 1, "{}", second.log());
    let ended = first.stop(Signal::TERM);
    assert!(ended.log.contains("are not removed"), "{}", ended.log);
    let next = ask(&second, &and(&said.history, 1), 0);
    drop(second);
    let third = launch(&store, &[]).start();
    assert!(ask(&third, &and(&next.history, 2), 0).computed < 20);
}

#[test]
fn a_cache_that_cannot_be_kept_says_why_once() {
    let store = or_skip!(Store::with(PAGES));
    for (server, why) in [
        (
            with(&["--spec-type", "ngram-simple"]),
            "speculative decoding",
        ),
        (
            with(&["--override-kv", "llama.expert_used_count=int:0"]),
            "--override-kv",
        ),
    ] {
        let server = server
            .hugepages("require")
            .args(["--hugepage-store", store.arg(), "--hugepage-keep-context"])
            .start();
        let log = server.log();
        assert_eq!(
            log.matches("no conversation will remain").count(),
            1,
            "{log}"
        );
        assert!(log.contains(why), "{log}");
        server.assert_answers();
        drop(server);
        assert_eq!(contexts(&store), Vec::<PathBuf>::new());
    }
    let needs = with(&[])
        .hugepages("require")
        .args(["--hugepage-keep-context"])
        .start();
    assert!(
        needs.log().contains("needs --hugepage-store"),
        "{}",
        needs.log()
    );
}

/// The plan counts the context as the load takes it, and nothing is left of a load that lacks a page.
#[test]
fn the_plan_counts_the_context() {
    let mut store = or_skip!(Store::with(PAGES));
    let launch = launch(&store, &[]);
    let pages = |plan: &Value| -> u64 {
        let needs = plan["needs"].as_array().expect("a list");
        needs
            .iter()
            .map(|need| need["pages"].as_u64().expect("a number"))
            .sum()
    };
    let planned = pages(&plan::of(&launch));
    let server = launch.clone().start();
    assert_eq!(store.pool.taken(), planned);
    drop(server);
    store.empty();
    store.pool.set(planned - 1);
    let short = launch.clone().run();
    assert_eq!(short.status.code(), Some(3), "{}", short.log);
    assert_eq!(contexts(&store), Vec::<PathBuf>::new());
    store.pool.set(planned);
    drop(launch.clone().start());
    let kept = store.pages();
    assert_eq!(
        pages(&plan::of(&launch)),
        planned - kept,
        "the next server needs less"
    );
    assert!(Path::new(store.arg()).exists());
}
