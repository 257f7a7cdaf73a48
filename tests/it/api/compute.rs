//! Tokens, logits and samplers equal stock's, and no caller's mistake ends the process.

use std::thread;

use llama_hugepages::{
    Batch, Context, ContextParams, Error, HugePages, Model, Sampler, Specials, Token,
};

use super::{FOR_CONTEXTS, context, load, model_file, params};
use crate::equality::{self, PROMPT};
use crate::support::pool::Pool;
use crate::support::{gguf, or_skip, programs};

/// The logits of every token of a prompt, as bytes.
pub fn logits(model: &Model, prompt: &str) -> Vec<u8> {
    let tokens = model
        .tokenize(prompt, Specials::Add)
        .expect("any text has tokens");
    let mut context = context(model);
    context
        .decode(&Batch::all_outputs(&tokens))
        .expect("the batch is small");
    let rows = (0..tokens.len()).flat_map(|i| context.logits(i).expect("all are outputs").to_vec());
    rows.flat_map(f32::to_le_bytes).collect()
}

pub fn generate(context: &mut Context, sampler: &mut Sampler, n: usize) -> Vec<Token> {
    let mut tokens = context
        .model()
        .tokenize(PROMPT, Specials::Add)
        .expect("any text has tokens");
    let mut generated = Vec::new();
    while generated.len() < n {
        context
            .decode(&Batch::prompt(&tokens))
            .expect("the context has room");
        let next = sampler
            .sample(context, tokens.len() - 1)
            .expect("the last one is an output");
        generated.push(next);
        tokens = vec![next];
    }
    generated
}

#[test]
fn logits_are_those_of_stock_wherever_the_weights_lie() {
    let stock = or_skip!(programs::stock("llama-results"));
    let path = model_file();
    let expected = equality::logits(&stock, &path, &[]);

    let need = gguf::pages(&path);
    let mut pool = or_skip!(Pool::with(0));
    for (hugepages, pages, taken) in [
        (HugePages::Off, 0, 0),
        (HugePages::Require, need + FOR_CONTEXTS, need),
        (HugePages::Prefer, need / 3, need / 3),
    ] {
        pool.set(pages);
        let model = load(&path, hugepages);
        assert_eq!(pool.taken(), taken, "{hugepages:?}");
        assert!(
            logits(&model, PROMPT) == expected,
            "{hugepages:?}: not the same logits"
        );
        drop(model);
        pool.assert_all_back();
    }
}

#[test]
fn text_comes_back_from_its_tokens() {
    let model = load(&model_file(), HugePages::Off);
    for text in [
        "",
        "a",
        "The quick brown fox",
        "äöü — ☃ 🦙",
        "\n\t\0 end",
        &"long ".repeat(500),
    ] {
        let tokens = model
            .tokenize(text, Specials::Plain)
            .expect("any text has tokens");
        assert_eq!(
            String::from_utf8_lossy(
                &model
                    .detokenize(&tokens)
                    .expect("the tokens are the model's own")
            )
            .trim_start(),
            text.trim_start()
        );
    }
}

#[test]
fn a_mistake_is_an_error_and_not_the_end_of_the_process() {
    let model = load(&model_file(), HugePages::Off);
    let n_vocab = model.n_vocab();
    let unknown = Token(i32::try_from(n_vocab).expect("a small vocabulary"));
    for token in [unknown, Token(-1), Token(i32::MIN)] {
        assert_eq!(
            model.piece(token),
            Err(Error::InvalidToken { token, n_vocab })
        );
    }

    let params = ContextParams::default()
        .with_n_ctx(256)
        .with_n_batch(32)
        .with_n_ubatch(32)
        .with_threads(1);
    let mut context = Context::new(&model, &params).expect("the model has weights");
    let one = |token, sequence, position| {
        let mut batch = Batch::new();
        batch.push(token, sequence, position, true);
        batch
    };
    let some = Token(5);
    let too_large = Batch::prompt(&[some; 33]);
    assert_eq!(
        context.decode(&too_large),
        Err(Error::BatchTooLarge {
            tokens: 33,
            limit: 32
        })
    );
    assert_eq!(
        context.decode(&one(unknown, 0, None)),
        Err(Error::InvalidToken {
            token: unknown,
            n_vocab
        })
    );
    for sequence in [-1, 1, i32::MAX] {
        assert_eq!(
            context.decode(&one(some, sequence, None)),
            Err(Error::InvalidSequence {
                sequence,
                n_seq_max: 1
            })
        );
    }
    assert!(matches!(
        context.decode(&one(some, 0, Some(-1))),
        Err(Error::InvalidPosition { position: -1, .. })
    ));
    assert!(matches!(
        context.decode(&Batch::new()),
        Err(Error::Decode(_))
    ));

    let none = |what, index| Err::<Vec<f32>, _>(Error::NoOutput { what, index });
    assert_eq!(context.logits(0).map(<[f32]>::to_vec), none("logits", 0));
    context
        .decode(&Batch::prompt(&[some; 3]))
        .expect("the batch is valid");
    assert_eq!(
        context.logits(2).expect("the last is an output").len(),
        n_vocab
    );
    for index in [0, 3, usize::MAX] {
        assert_eq!(
            context.logits(index).map(<[f32]>::to_vec),
            none("logits", index)
        );
        assert!(Sampler::greedy(&model).sample(&mut context, index).is_err());
    }
    assert_eq!(
        context.embeddings(2).map(<[f32]>::to_vec),
        none("embeddings", 2)
    );
    assert_eq!(
        context.sequence_embeddings(0).map(<[f32]>::to_vec),
        none("pooled embeddings", 0)
    );

    // A gap in the sequence: the error carries llama.cpp's reason.
    let error = context.decode(&one(some, 0, Some(100))).unwrap_err();
    let Error::Decode(said) = &error else {
        panic!("{error}")
    };
    assert!(!said.lines.is_empty(), "{error}");
    assert!(
        context.logits(2).is_err(),
        "the next batch drops the output, even if it fails"
    );
}

#[test]
fn a_full_context_is_an_error_of_its_own() {
    let model = load(&model_file(), HugePages::Off);
    let params = ContextParams::default()
        .with_n_ctx(256)
        .with_n_batch(64)
        .with_n_ubatch(64)
        .with_threads(2);
    let mut context = Context::new(&model, &params).expect("the model has weights");
    let batch = Batch::prompt(&[Token(5); 64]);
    for _ in 0..context.n_ctx() / 64 {
        context.decode(&batch).expect("the context has room");
    }
    assert_eq!(
        context.decode(&batch),
        Err(Error::ContextFull { tokens: 64 })
    );
    context.clear();
    context.decode(&batch).expect("the context has room again");
}

#[test]
fn a_model_without_weights_tokenizes_and_makes_no_context() {
    let path = model_file();
    let model = Model::load(&path, &params(HugePages::Off).with_vocab_only(true))
        .expect("the file is a model");
    let whole = load(&path, HugePages::Off);
    assert_eq!(
        model.tokenize(PROMPT, Specials::Add),
        whole.tokenize(PROMPT, Specials::Add)
    );
    assert_eq!(
        Context::new(&model, &ContextParams::default()).unwrap_err(),
        Error::NoWeights
    );
}

#[test]
fn the_same_seed_chooses_the_same_tokens_on_any_thread() {
    let model = load(&model_file(), HugePages::Off);
    let seeded = |seed| {
        Sampler::chain(&model)
            .top_k(40)
            .top_p(0.95)
            .temperature(0.8)
            .seeded(seed)
    };
    let run = |seed| {
        let mut context = context(&model);
        let mut sampler = seeded(seed);
        // Another thread may use the context and the sampler.
        thread::scope(|scope| {
            scope
                .spawn(move || generate(&mut context, &mut sampler, 16))
                .join()
                .expect("the thread does not panic")
        })
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn greedy_chooses_the_largest_logit_that_may_be_chosen() {
    let model = load(&model_file(), HugePages::Off);
    let mut context = context(&model);
    let tokens = model
        .tokenize(PROMPT, Specials::Add)
        .expect("any text has tokens");
    context
        .decode(&Batch::prompt(&tokens))
        .expect("the batch is small");
    let next = Sampler::greedy(&model)
        .sample(&mut context, tokens.len() - 1)
        .expect("the last is an output");
    assert!(!model.is_end(next), "a demo model ends no text");
    let logits = context
        .logits(tokens.len() - 1)
        .expect("the last is an output")
        .to_vec();
    let may_be_chosen = |token: i32| {
        let piece = model
            .piece(Token(token))
            .expect("the token is in the vocabulary");
        !piece.is_empty()
            && piece
                .iter()
                .all(|byte| *byte == b' ' || byte.is_ascii_graphic())
    };
    let candidates = (0..)
        .zip(&logits)
        .filter(|(token, _)| may_be_chosen(*token));
    let largest = candidates
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(token, _)| token);
    assert_eq!(Some(next.0), largest);
}

#[test]
fn sequences_do_not_see_each_other() {
    let model = load(&model_file(), HugePages::Off);
    let params = ContextParams::default()
        .with_n_ctx(512)
        .with_n_seq_max(2)
        .with_threads(2);
    let mut context = Context::new(&model, &params).expect("the model has weights");
    let tokens = model
        .tokenize(PROMPT, Specials::Add)
        .expect("any text has tokens");
    let mut batch = Batch::new();
    for token in &tokens {
        batch.push(*token, 1, None, true);
    }
    context.decode(&batch).expect("the batch is small");
    let alone = context
        .logits(tokens.len() - 1)
        .expect("an output")
        .to_vec();

    context.clear();
    let other: Vec<Token> = tokens.iter().rev().copied().collect();
    context
        .decode(&Batch::prompt(&other))
        .expect("the batch is small");
    context.decode(&batch).expect("the batch is small");
    let beside = context
        .logits(tokens.len() - 1)
        .expect("an output")
        .to_vec();
    let distance = alone
        .iter()
        .zip(&beside)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(distance < 1e-3, "{distance}");
}
