//! Many messages to several models behind a router. Chance chooses the model of each message.
//!
//! ```text
//! to the router:  a message to each model │ message to C ─▶ C starts ─▶ first token │ to C ─▶ first token │ to A ─▶ C ends, A starts ─▶ …
//!                 not measured            │ measured                                │ measured            │ measured
//! ```
//! Both sides get the same messages. Each model has one conversation, which grows with each message, and begins anew when it is too long.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::conversation::{Conversation, NEW_TOKENS};
use super::server::Server;
use super::{CompareError, RoutedModel, Runner};
use crate::compare::measure::Ratio;
use crate::stats;

/// Result of the case `traffic`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traffic {
    /// Names of the models.
    pub models: Vec<String>,
    /// Names of both sides, the baseline first.
    pub sides: [String; 2],
    /// Command lines of both routers.
    pub commands: [Vec<String>; 2],
    /// Tokens of the longest conversation, with the last message and its answer.
    pub conversation_tokens: u64,
    /// The most tokens that a server with the whole conversation computes for a message.
    pub new_tokens: u64,
    /// Ratio B / A of each percentile, by its id. Without those that are the slowest message because a run has too few messages.
    pub ratios: BTreeMap<&'static str, Ratio>,
    /// Pairs of the messages to A and of the same messages to B, in the order of their time.
    pub pairs: Vec<[Vec<Message>; 2]>,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Number of the model.
    pub model: usize,
    /// Whether another model was in use before.
    pub is_switch: bool,
    /// The request to the first token of the answer.
    pub seconds_to_token: f64,
    /// Tokens that the server computed for the message. Source: `timings.prompt_n` of `/completion`.
    pub computed_tokens: u64,
}

/// A share of the messages that get their first token within a time.
#[derive(Clone, Copy, Debug)]
pub struct Percentile {
    /// Name in the JSON and in a table.
    pub id: &'static str,
    /// Messages within the time, of a hundred.
    pub of_hundred: usize,
}

/// All percentiles in the report.
pub const PERCENTILES: [Percentile; 4] = [
    percentile("p50", 50),
    percentile("p90", 90),
    percentile("p99", 99),
    percentile("max", 100),
];

const fn percentile(id: &'static str, of_hundred: usize) -> Percentile {
    Percentile { id, of_hundred }
}

impl Percentile {
    /// The smallest of the times that is not exceeded by this share of them. `None` without times.
    pub fn of(self, sorted: &[f64]) -> Option<f64> {
        stats::percentile(sorted, self.of_hundred)
    }

    /// Whether so few messages cannot tell the percentile from the slowest message.
    fn is_slowest_of(self, messages: usize) -> bool {
        self.of_hundred < 100 && messages * (100 - self.of_hundred) < 100
    }
}

impl Traffic {
    /// All messages to a side; 0 is the baseline.
    pub fn messages(&self, side: usize) -> impl Iterator<Item = &Message> {
        self.pairs.iter().flat_map(move |pair| &pair[side])
    }

    /// Times of a side to the first token, in ascending order.
    pub fn sorted(&self, side: usize) -> Vec<f64> {
        sorted(self.messages(side))
    }

    /// The most tokens that our side computed for a message.
    pub fn computed_tokens(&self) -> Option<u64> {
        let messages = self.messages(1);
        messages.map(|message| message.computed_tokens).max()
    }

    fn finish(&mut self) {
        let of_run = self
            .pairs
            .iter()
            .map(|[a, _]| a.len())
            .min()
            .unwrap_or_default();
        let ratio = |percentile: Percentile| {
            if percentile.is_slowest_of(of_run) {
                return None;
            }
            let values = self.pairs.iter().map(|pair| {
                let [a, b] = [0, 1].map(|side| percentile.of(&sorted(&pair[side])));
                Some((a?, b?))
            });
            let values: Option<Vec<_>> = values.collect();
            Some((percentile.id, Ratio::of(values?)?))
        };
        self.ratios = PERCENTILES.into_iter().filter_map(ratio).collect();
    }
}

fn sorted<'m>(messages: impl IntoIterator<Item = &'m Message>) -> Vec<f64> {
    let times = messages.into_iter().map(|message| message.seconds_to_token);
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times
}

impl Runner<'_> {
    /// Sends `messages` messages to a router of each side, or a few more, so that all pairs have the same number. `dir` is the directory
    /// of [`link_models`](super::link_models). No conversation has more than `longest` tokens. Calls `told` before each run.
    ///
    /// # Errors
    /// Errors of a server.
    pub fn traffic(
        &self,
        models: &[RoutedModel],
        dir: &Path,
        (messages, longest): (u32, u32),
        told: impl Fn(&str),
    ) -> Result<Traffic, CompareError> {
        let mut result = Traffic {
            models: models.iter().map(|model| model.name.clone()).collect(),
            sides: [0, 1].map(|at| models[0].sides[at].name.clone()),
            commands: [Vec::new(), Vec::new()],
            conversation_tokens: 0,
            new_tokens: NEW_TOKENS,
            ratios: BTreeMap::new(),
            pairs: Vec::new(),
        };
        let longest = self.longest(models)?.min(longest.into());
        let of_pair = (messages as usize).div_ceil(self.pairs);
        for pair in 0..self.pairs {
            let order = chosen(pair as u64, models.len(), of_pair);
            let (runs, commands) = self.routers("traffic", pair, models, dir, &told, |router| {
                answered(router, models.len(), longest, &order)
            })?;
            for (_, length) in &runs {
                result.conversation_tokens = result.conversation_tokens.max(*length);
            }
            let runs = runs.map(|(messages, _)| messages);
            result.pairs.push(runs);
            result.commands = commands;
        }
        result.finish();
        Ok(result)
    }
}

/// Sends a message to each model of `order`. Returns the tokens of the longest conversation too.
fn answered(
    router: &mut Server<'_>,
    models: usize,
    longest: u64,
    order: &[usize],
) -> Result<(Vec<Message>, u64), CompareError> {
    let new = |number: usize| Conversation::new(&number.to_string(), 0);
    let mut conversations: Vec<_> = (0..models).map(new).collect();
    // Fills the page cache and the store.
    for conversation in &mut conversations {
        conversation.add_message();
        conversation.begin(router, 1)?;
        router.keeps_context()?;
    }
    let mut before = models - 1;
    let (mut messages, mut most_tokens) = (Vec::new(), 0);
    for &model in order {
        let conversation = &mut conversations[model];
        // The message and the token of its answer.
        let is_new = conversation.len() + NEW_TOKENS > longest;
        if is_new {
            *conversation = new(model);
        }
        conversation.add_message();
        let asked = Instant::now();
        let answer = if is_new {
            conversation.begin(router, 1)?
        } else {
            conversation.go_on(router, 1)?
        };
        most_tokens = most_tokens.max(conversation.len());
        messages.push(Message {
            model,
            is_switch: model != before,
            seconds_to_token: (answer.came - asked).as_secs_f64(),
            computed_tokens: answer.computed,
        });
        before = model;
    }
    Ok((messages, most_tokens))
}

/// The models of `messages` messages. The same `seed` chooses the same models.
fn chosen(seed: u64, models: usize, messages: usize) -> Vec<usize> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    // The bias of the remainder is below 2^-60.
    let model = |_| usize::try_from(random.next_u64() % models as u64).unwrap_or_default();
    (0..messages).map(model).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seconds_to_token: f64, computed_tokens: u64) -> Message {
        Message {
            model: 0,
            is_switch: true,
            seconds_to_token,
            computed_tokens,
        }
    }

    #[test]
    fn a_percentile_is_a_measured_time() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        let of = |times: &[f64]| PERCENTILES.map(|percentile| percentile.of(times));
        assert_eq!(of(&times), [100.0, 180.0, 198.0, 200.0].map(Some));
        assert_eq!(of(&[3.0]), [Some(3.0); 4]);
        assert_eq!(PERCENTILES[0].of(&[]), None);
    }

    #[test]
    fn a_ratio_compares_the_percentiles_of_the_same_messages() {
        let run = |seconds| vec![message(seconds, 11), message(seconds * 2.0, 10)];
        let mut traffic = Traffic {
            models: vec!["m".into(), "n".into()],
            sides: ["stock".into(), "kept context".into()],
            commands: [Vec::new(), Vec::new()],
            conversation_tokens: 200,
            new_tokens: NEW_TOKENS,
            ratios: BTreeMap::new(),
            pairs: vec![[run(8.0), run(1.0)], [run(16.0), run(2.0)]],
        };
        traffic.finish();
        let ids: Vec<_> = traffic.ratios.keys().copied().collect();
        assert_eq!(ids, ["max", "p50"], "of two messages");
        for ratio in traffic.ratios.values() {
            assert!((ratio.mean - 0.125).abs() < 1e-12, "{ratio:?}");
        }
        assert_eq!(traffic.sorted(1), [1.0, 2.0, 2.0, 4.0]);
        assert_eq!(traffic.computed_tokens(), Some(11));
    }

    #[test]
    fn chance_chooses_every_model_and_repeats_itself() {
        let models = chosen(1, 3, 300);
        assert_eq!(models, chosen(1, 3, 300));
        assert_ne!(models, chosen(2, 3, 300));
        for model in 0..3 {
            let messages = models.iter().filter(|chosen| **chosen == model);
            assert!((60..140).contains(&messages.count()), "{models:?}");
        }
    }
}
