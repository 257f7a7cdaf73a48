//! The embeddings of a real model follow the meaning of texts, and equal stock's.

use std::env;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::{gguf, http, models, need, or_skip, smaps};

const SENTENCES: [&str; 3] = [
    "a dog runs in the park",
    "a puppy is playing outside",
    "interest rates rose again",
];

/// all-MiniLM-L6-v2, which is not part of the source: `LLAMA_HUGEPAGES_TEST_MODELS` names its folder.
fn mini_lm() -> Option<PathBuf> {
    let dir = env::var_os("LLAMA_HUGEPAGES_TEST_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models"),
        PathBuf::from,
    );
    let path = dir.join("all-minilm-l6-v2-q8_0.gguf");
    path.is_file().then_some(path)
}

/// A model for embeddings: the real one if its file exists, else one with random weights.
pub fn encoder() -> PathBuf {
    mini_lm().unwrap_or_else(|| models::demo_with("20M", "Q8_0", &["--arch", "bert"]))
}

/// A real model, its pooling options, and the least extra similarity of two texts with the same meaning.
fn real_model() -> Result<(PathBuf, &'static [&'static str], f64), String> {
    match mini_lm() {
        Some(model) => Ok((model, &[], 0.2)),
        None => Ok((models::smollm2()?, &["--pooling", "mean"], 0.05)),
    }
}

fn launch(launch: Launch, model: &Path) -> Launch {
    launch.model(model).args(["--embeddings"])
}

/// The vectors as JSON numbers, so that every digit counts.
fn embeddings(server: &Server) -> Vec<Value> {
    let answer = http::post_json(
        &server.url("/v1/embeddings"),
        &json!({ "input": SENTENCES }),
    );
    let data = answer["data"].as_array().expect("one for each sentence");
    assert_eq!(data.len(), SENTENCES.len());
    data.iter().map(|item| item["embedding"].clone()).collect()
}

fn cosine(a: &Value, b: &Value) -> f64 {
    let [a, b] = [a, b].map(|vector| {
        let numbers = vector.as_array().expect("a vector").iter();
        numbers
            .map(|number| number.as_f64().expect("a number"))
            .collect::<Vec<_>>()
    });
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!(a.len() == b.len() && !a.is_empty());
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn a_dog_in_the_park_is_closer_to_a_puppy_than_to_interest_rates() {
    let (model, args, margin) = or_skip!(real_model());
    let ours = launch(Launch::ours(), &model)
        .args(args)
        .hugepages("require");
    let need = need::of(&ours);
    let _pool = or_skip!(Pool::with(need));
    let server = ours.start();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        need,
        "{}",
        server.log()
    );
    assert_eq!(
        smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE,
        gguf::pages(&model)
    );
    let [dog, puppy, rates] = &embeddings(&server)[..] else {
        unreachable!()
    };
    let (near, far) = (cosine(dog, puppy), cosine(dog, rates));
    assert!(
        near > far + margin,
        "puppy {near:.3}, interest rates {far:.3}"
    );
}

#[test]
fn embeddings_are_those_of_stock() {
    let model = encoder();
    let expected = embeddings(&launch(or_skip!(Launch::stock()), &model).start());
    let need = need::of(&launch(Launch::ours(), &model));
    let pool = or_skip!(Pool::with(need));
    assert_eq!(
        embeddings(&launch(Launch::ours(), &model).start()),
        expected,
        "off"
    );
    assert_eq!(
        embeddings(&launch(Launch::ours(), &model).hugepages("require").start()),
        expected,
        "require"
    );
    pool.assert_all_back();
}
