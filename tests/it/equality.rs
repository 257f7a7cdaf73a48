//! With the same prompt, seed and flags our answers equal stock llama.cpp's bit for bit, whichever memory holds the weights.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::gguf::{self, Gguf};
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, QUIET_THREADS, Server};
use crate::support::{full, http, models, need, or_skip, programs, skip, smaps};

pub const PROMPT: &str = "The quick brown fox jumps over the lazy dog, and then";

fn size() -> &'static str {
    if full() { "1G" } else { "100M" }
}

/// The memory of our server's weights.
#[derive(Clone, Copy, Debug)]
enum Placement {
    Off,
    Require,
    /// `prefer` with a third of the needed pages.
    PreferShort,
}

const PLACEMENTS: [Placement; 3] = [Placement::Off, Placement::Require, Placement::PreferShort];

impl Placement {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Off => &[],
            Self::Require => &["--hugepages", "--hugepage-policy", "require"],
            Self::PreferShort => &["--hugepages", "--hugepage-policy", "prefer"],
        }
    }

    /// The pages to put into the pool. Our server uses all of them.
    fn pages(self, need: u64) -> u64 {
        match self {
            Self::Off => 0,
            Self::Require => need,
            Self::PreferShort => need / 3,
        }
    }
}

/// The answers of a server: one greedy, one sampled with a seed.
pub fn answers(server: &Server) -> Value {
    let greedy = server.complete(PROMPT, &json!({ "temperature": 0 }));
    let seeded = server.complete(PROMPT, &json!({ "temperature": 0.8, "seed": 4242 }));
    for answer in [&greedy, &seeded] {
        assert_eq!(
            answer["tokens"].as_array().map(Vec::len),
            Some(24),
            "{answer}"
        );
        let probabilities = answer["probabilities"]
            .as_array()
            .expect("the request asked for probabilities");
        assert!(
            probabilities
                .iter()
                .all(|token| token["top_logprobs"].as_array().map(Vec::len) == Some(10)),
            "{answer}"
        );
    }
    json!({ "greedy": greedy, "seeded": seeded })
}

fn answers_are_those_of_stock(model: &Path) {
    let stock = or_skip!(Launch::stock()).model(model).start();
    let expected = answers(&stock);
    drop(stock);

    let need = need::of(&Launch::ours().model(model));
    let mut pool = or_skip!(Pool::with(0));
    for placement in PLACEMENTS {
        pool.set(placement.pages(need));
        let server = Launch::ours().model(model).args(placement.args()).start();
        // If the pages differ, equal answers prove nothing.
        assert_eq!(
            smaps::hugetlb_bytes(server.pid()) / PAGE,
            placement.pages(need),
            "{placement:?}"
        );
        if let Placement::Require = placement {
            assert_eq!(
                smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE,
                gguf::pages(model)
            );
        }
        assert_eq!(answers(&server), expected, "{placement:?}");
        drop(server);
        pool.assert_all_back();
    }
}

fn run_results(program: &Path, model: &Path, args: &[&str], out: &Path) -> (Command, Output) {
    let mut command = Command::new(program);
    command.arg("--model").arg(model).arg("--output").arg(out);
    command
        .args(["--prompt", PROMPT, "--threads", "2", "--ctx-size", "512"])
        .args(args);
    command.env(QUIET_THREADS.0, QUIET_THREADS.1);
    let output = command.output().expect("the program can be started");
    (command, output)
}

/// Pages that `llama-results` needs under `require`. Call this before the test takes the pool.
pub fn results_need(program: &Path, model: &Path, args: &[&str]) -> u64 {
    let name = format!("{} {} {args:?}", program.display(), model.display());
    need::of_program(&name, || {
        let args = [args, Placement::Require.args()].concat();
        let (command, output) = run_results(program, model, &args, Path::new("/dev/null"));
        assert!(!output.status.success(), "{command:?} should have failed");
        let streams = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&streams).into_owned()
    })
}

/// The logits of every token of a prompt, as the program wrote them, with every weight mapped.
pub fn logits(program: &Path, model: &Path, args: &[&str]) -> Vec<u8> {
    repacked_logits(program, model, &[&["--no-repack"], args].concat())
}

/// The same logits with the program's default, which may repack weights.
pub fn repacked_logits(program: &Path, model: &Path, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let out = dir.path().join("results.gguf");
    let (command, output) = run_results(program, model, args, &out);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let results = Gguf::read(&out);
    let tensor = results.tensor("logits");
    let mut bytes = vec![0; usize::try_from(tensor.end - tensor.start).expect("a small tensor")];
    File::open(&out)
        .and_then(|file| file.read_exact_at(&mut bytes, tensor.start))
        .expect("the file was just written");
    // If all logits are the same, their equality proves nothing.
    assert!(
        bytes.chunks_exact(4).any(|logit| logit != &bytes[..4]),
        "the logits are all the same"
    );
    bytes
}

fn logits_are_those_of_stock(model: &Path) {
    let stock = or_skip!(programs::stock("llama-results"));
    let ours = or_skip!(programs::patched("llama-results"));
    let expected = logits(&stock, model, &[]);

    let need = results_need(&ours, model, &["--no-repack"]);
    let mut pool = or_skip!(Pool::with(0));
    for placement in PLACEMENTS {
        pool.set(placement.pages(need));
        assert!(
            logits(&ours, model, placement.args()) == expected,
            "{placement:?}: not the same logits"
        );
        pool.assert_all_back();
    }
}

macro_rules! equal_to_stock {
    ($($name:ident: $model:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn answers_are_those_of_stock() {
                super::answers_are_those_of_stock(&$model);
            }

            #[test]
            fn logits_are_those_of_stock() {
                super::logits_are_those_of_stock(&$model);
            }
        }
    )*};
}

equal_to_stock! {
    q8_0_in_one_file: models::demo(size(), "Q8_0");
    q8_0_in_three_shards: models::demo_in_shards(size(), "Q8_0", 3);
    q4_k_in_one_file: models::demo(size(), "Q4_K");
    q4_k_in_three_shards: models::demo_in_shards(size(), "Q4_K", 3);
    f16_in_one_file: models::demo(size(), "F16");
    f16_in_three_shards: models::demo_in_shards(size(), "F16", 3);
}

/// Without `--no-repack` some weights leave the file image, depending on their type and the CPU.
fn answers_with_repacked_weights_are_those_of_stock(kind: &str) {
    let model = models::demo("100M", kind);
    let mut stock = or_skip!(Launch::stock()).repacked_model(&model).spawn();
    if !stock.is_ready_before_it_ends() {
        return skip(format!(
            "stock llama-server cannot serve {kind} with repacked weights here: {}",
            stock.how_it_ended()
        ));
    }
    let expected = answers(&stock);
    drop(stock);

    let launch = || Launch::ours().repacked_model(&model);
    let need = need::of(&launch());
    let mut pool = or_skip!(Pool::with(0));
    for placement in PLACEMENTS {
        pool.set(placement.pages(need));
        let server = launch().args(placement.args()).start();
        assert_eq!(
            smaps::hugetlb_bytes(server.pid()) / PAGE,
            placement.pages(need),
            "{placement:?}"
        );
        assert_eq!(answers(&server), expected, "{placement:?}");
        drop(server);
        pool.assert_all_back();
    }
}

#[test]
fn answers_with_repacked_q8_0_are_those_of_stock() {
    answers_with_repacked_weights_are_those_of_stock("Q8_0");
}

#[test]
fn answers_with_repacked_q4_k_are_those_of_stock() {
    answers_with_repacked_weights_are_those_of_stock("Q4_K");
}

#[test]
fn answers_with_repacked_f16_are_those_of_stock() {
    answers_with_repacked_weights_are_those_of_stock("F16");
}

/// A test of the tests: the compared answers depend on the weights.
#[test]
fn another_weight_gives_other_answers() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let model = models::demo("100M", "Q8_0");
    let other = models::copy_to(dir.path(), &model);
    let table = Gguf::read(&other);
    let tensor = table
        .tensors
        .iter()
        .max_by_key(|tensor| tensor.end)
        .expect("the model has tensors");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&other)
        .expect("the copy is ours");
    // The quants of the first blocks of the last tensor: 2 bytes of scale, 32 of numbers.
    for block in 0..64 {
        file.write_all_at(&[1; 32], tensor.start + block * 34 + 2)
            .expect("the copy is ours");
    }
    let [expected, changed] =
        [&model, &other].map(|model| answers(&Launch::ours().model(model).start()));
    assert_ne!(
        expected, changed,
        "a change of `{}` changes no answer",
        tensor.name
    );
}

/// Uses the model's chat template, as a person does.
#[test]
fn a_real_model_says_to_a_person_what_it_says_with_stock() {
    let model = or_skip!(models::smollm2());
    let chat = |server: &Server| {
        let body = json!({
            "messages": [{ "role": "user", "content": "Why is the sky blue?" }],
            "max_tokens": 48, "temperature": 0, "logprobs": true, "top_logprobs": 5,
        });
        http::post_json(&server.url("/v1/chat/completions"), &body)["choices"].clone()
    };
    let launch = |launch: Launch| launch.repacked_model(&model);
    let expected = chat(&launch(or_skip!(Launch::stock())).start());
    let text = expected[0]["message"]["content"].as_str();
    // The words depend on the CPU.
    let is_about_it = |text: &str| ["scatter", "light"].iter().any(|word| text.contains(word));
    assert!(text.is_some_and(is_about_it), "{text:?}");

    let need = need::of(&launch(Launch::ours()));
    let pool = or_skip!(Pool::with(need));
    for policy in ["require", "prefer"] {
        let answer = chat(&launch(Launch::ours()).hugepages(policy).start());
        assert_eq!(answer, expected, "{policy}");
    }
    pool.assert_all_back();
}
