//! A conversation of fixed numbers, which one server begins and another one continues.

use std::time::Instant;

use serde_json::{Value, json};

use super::CompareError;
use super::server::Server;
use crate::compare::measure::answers;

/// Tokens of a message.
pub const MESSAGE: u64 = 10;

/// Tokens that a server with the whole conversation computes for the next message: the message, and the last token of the answer
/// before it, which was only chosen.
pub const NEW_TOKENS: u64 = MESSAGE + 1;

/// The only slot, which all requests use.
pub const SLOT: u32 = 0;

/// Size of a context in tokens that holds a conversation, two messages and two answers.
pub fn context_size(conversation_tokens: u32, answer_tokens: u32) -> u64 {
    u64::from(conversation_tokens) + room(answer_tokens)
}

/// Tokens in the context behind the conversation. The server needs one more to generate.
pub fn room(answer_tokens: u32) -> u64 {
    2 * (MESSAGE + u64::from(answer_tokens)) + 1
}

/// The tokens so far, as numbers, because both servers must get exactly the same tokens.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Name of the model for a router; other servers ignore the name.
    model: String,
    tokens: Vec<u64>,
}

/// One answer.
pub struct Answer {
    /// Tokens with their probabilities.
    pub said: Vec<Value>,
    /// Tokens computed for the prompt. Source: `timings.prompt_n` of `/completion`.
    pub computed: u64,
    /// Seconds that the server computed them. Source: `timings.prompt_ms` of `/completion`.
    pub computed_seconds: f64,
    pub came: Instant,
}

impl Conversation {
    pub fn new(model: &str, tokens: u64) -> Self {
        Self {
            model: model.to_owned(),
            tokens: (0..tokens).map(|i| 3 + i * 7 % 200).collect(),
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> u64 {
        self.tokens.len() as u64
    }

    pub fn add_message(&mut self) {
        self.tokens.extend(50..50 + MESSAGE);
    }

    /// Requests `tokens` tokens from a server that must compute the whole conversation, and adds them.
    pub fn begin(&mut self, server: &mut Server<'_>, tokens: u32) -> Result<Answer, CompareError> {
        self.ask(server, tokens, false)
    }

    /// Requests `tokens` more tokens, and adds them.
    pub fn go_on(&mut self, server: &mut Server<'_>, tokens: u32) -> Result<Answer, CompareError> {
        self.ask(server, tokens, true)
    }

    fn ask(
        &mut self,
        server: &mut Server<'_>,
        tokens: u32,
        is_known: bool,
    ) -> Result<Answer, CompareError> {
        let request = json!({
            "model": self.model, "prompt": self.tokens, "n_predict": tokens, "temperature": 0, "n_probs": 3,
            "cache_prompt": is_known, "ignore_eos": true, "id_slot": SLOT,
        });
        let (answer, came) = server.complete(&request)?;
        let read = || {
            let said = answers::tokens(&answer)?;
            let ids = said.iter().map(|token| token["id"].as_u64());
            let ids: Vec<u64> = ids.collect::<Option<_>>()?;
            let timings = &answer["timings"];
            let answer = Answer {
                said,
                computed: timings["prompt_n"].as_u64()?,
                computed_seconds: timings["prompt_ms"].as_f64()? / 1e3,
                came,
            };
            Some((ids, answer))
        };
        let (ids, answer) = read().ok_or_else(|| server.no_answer(&answer.to_string()))?;
        self.tokens.extend(ids);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_holds_the_conversation_and_what_follows() {
        let (tokens, answer) = (2048, 4);
        let mut talk = Conversation::new("m", tokens.into());
        talk.add_message();
        talk.add_message();
        let all = talk.tokens.len() as u64 + 2 * u64::from(answer);
        assert!(context_size(tokens, answer) > all);
    }
}
