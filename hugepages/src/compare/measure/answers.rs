//! The answers that must be equal: the prompts, the answers, and the first difference.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// Prompts and temperatures: two greedy answers, and one with a seed.
pub const QUESTIONS: [(&str, f64); 3] = [
    ("Once upon a time", 0.0),
    ("The page tables of a process are", 0.0),
    ("1, 2, 3, 4, 5,", 0.8),
];

/// A request for an answer with the probabilities of each token.
pub fn request(prompt: &str, temperature: f64, tokens: u32) -> Value {
    json!({
        "prompt": prompt, "n_predict": tokens, "temperature": temperature, "seed": 1, "n_probs": 3, "cache_prompt": false,
    })
}

/// The tokens of an answer with their log-probabilities. `None` if the answer has none.
pub fn tokens(answer: &Value) -> Option<Vec<Value>> {
    let tokens = answer["completion_probabilities"].as_array()?;
    (!tokens.is_empty()).then(|| tokens.clone())
}

/// The first different token of two answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The prompt.
    pub prompt: String,
    /// Number of the token in the answer, from 1.
    pub token: usize,
    /// Output of A: token, log-probability and the next likely tokens; empty after the end of its answer.
    pub said_a: String,
    /// Output of B.
    pub said_b: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            prompt,
            token,
            said_a,
            said_b,
        } = self;
        write!(
            f,
            "token {token} of the answer to `{prompt}`: `{said_a}` and `{said_b}`"
        )
    }
}

/// A token of an answer; empty after its end. As text, because the shortest decimal form shows a difference in the last bit.
fn said(tokens: &[Value], at: usize) -> String {
    tokens.get(at).map(Value::to_string).unwrap_or_default()
}

/// Number of tokens that two answers do not share.
pub fn differences(a: &[Value], b: &[Value]) -> usize {
    let longest = a.len().max(b.len());
    (0..longest)
        .filter(|at| said(a, *at) != said(b, *at))
        .count()
}

/// Answers to [`QUESTIONS`], side by side.
pub fn first_difference(a: &[Vec<Value>], b: &[Vec<Value>]) -> Option<Difference> {
    let prompts = QUESTIONS.iter().map(|(prompt, _)| prompt);
    for (prompt, (a, b)) in prompts.zip(a.iter().zip(b)) {
        let longest = a.len().max(b.len());
        if let Some(at) = (0..longest).find(|at| said(a, *at) != said(b, *at)) {
            return Some(Difference {
                prompt: (*prompt).to_owned(),
                token: at + 1,
                said_a: said(a, at),
                said_b: said(b, at),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(third: f64, length: usize) -> Vec<Vec<Value>> {
        let token = |logprob: f64| json!({ "id": 7, "logprob": logprob });
        let mut answer = vec![token(-0.5), token(-0.25), token(third)];
        answer.truncate(length);
        vec![vec![token(-1.0)], answer, vec![token(-2.0)]]
    }

    #[test]
    fn the_last_bit_of_a_probability_is_a_difference_with_a_place() {
        let other = f64::from_bits(0.125_f64.to_bits() + 1);
        let found = first_difference(&answers(-0.125, 3), &answers(-other, 3)).unwrap();
        assert_eq!((found.prompt.as_str(), found.token), (QUESTIONS[1].0, 3));
        assert!(found.said_a.contains("-0.125}"), "{found}");
    }

    #[test]
    fn an_answer_that_ends_early_differs_where_it_ends() {
        let found = first_difference(&answers(-0.125, 3), &answers(-0.125, 2)).unwrap();
        assert_eq!((found.token, found.said_b.as_str()), (3, ""));
        let [whole, early] = [3, 1].map(|length| answers(-0.125, length)[1].clone());
        assert_eq!(differences(&whole, &early), 2);
        assert_eq!(first_difference(&answers(0.5, 3), &answers(0.5, 3)), None);
    }
}
