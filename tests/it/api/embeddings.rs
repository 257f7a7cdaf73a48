//! Embeddings of a real model.

use llama_hugepages::{Batch, Context, ContextParams, Error, HugePages, Model, Specials, Token};
use serde_json::json;

use super::{FOR_CONTEXTS, load};
use crate::embeddings::encoder;
use crate::support::pool::Pool;
use crate::support::server::Launch;
use crate::support::{gguf, http, or_skip};

fn embedding(context: &mut Context, text: &str) -> Vec<f32> {
    let tokens = context
        .model()
        .tokenize(text, Specials::Add)
        .expect("any text has tokens");
    context
        .decode(&Batch::all_outputs(&tokens))
        .expect("the batch is small");
    context
        .sequence_embeddings(0)
        .expect("the model pools")
        .to_vec()
}

fn embedding_context(model: &Model) -> Context {
    Context::new(
        model,
        &ContextParams::default()
            .with_embeddings(true)
            .with_threads(2),
    )
    .expect("the model has weights")
}

/// Scales a vector to length 1, as llama-server does.
fn normalized(vector: &[f32]) -> Vec<f32> {
    let norm = vector
        .iter()
        .map(|x| f64::from(*x) * f64::from(*x))
        .sum::<f64>()
        .sqrt();
    vector.iter().map(|x| x * (1.0 / norm) as f32).collect()
}

#[test]
fn embeddings_are_those_of_the_stock_server() {
    const TEXT: &str = "a dog runs in the park";
    let path = encoder();
    let server = or_skip!(Launch::stock())
        .model(&path)
        .args(["--embeddings", "--threads", "2"])
        .start();
    let answer = http::post_json(&server.url("/v1/embeddings"), &json!({ "input": TEXT }));
    drop(server);
    let expected = answer["data"][0]["embedding"].as_array().expect("a vector");
    let expected: Vec<f32> = expected
        .iter()
        .map(|x| x.as_f64().expect("a number") as f32)
        .collect();

    let pool = or_skip!(Pool::with(gguf::pages(&path) + FOR_CONTEXTS));
    for hugepages in [HugePages::Off, HugePages::Require, HugePages::Prefer] {
        let model = load(&path, hugepages);
        let mut context = embedding_context(&model);
        assert_eq!(
            normalized(&embedding(&mut context, TEXT)),
            expected,
            "{hugepages:?}"
        );
        assert!(context.logits(0).is_err(), "the model has no logits");
        drop((model, context));
        pool.assert_all_back();
    }
}

#[test]
fn texts_have_embeddings_of_their_own_and_a_position_without_a_row_is_an_error() {
    let model = load(&encoder(), HugePages::Off);
    let mut context = embedding_context(&model);
    let [dog, rates] = ["a dog runs in the park", "interest rates rose again"]
        .map(|text| normalized(&embedding(&mut context, text)));
    assert_eq!(dog.len(), model.n_embd());
    assert_ne!(dog, rates);
    assert_eq!(
        dog,
        normalized(&embedding(&mut context, "a dog runs in the park"))
    );
    // Positions are rows of a table. A position past its last row would end the process.
    let params = ContextParams::default()
        .with_embeddings(true)
        .with_n_ctx(1024)
        .with_n_batch(1024)
        .with_n_ubatch(1024);
    let mut large = Context::new(&model, &params).expect("the model has weights");
    let long = vec![Token(100); model.n_ctx_train() + 1];
    assert!(matches!(
        large.decode(&Batch::all_outputs(&long)),
        Err(Error::InvalidPosition { .. })
    ));
}
