//! The first token after a restart or a sleep, in a conversation that the server computed before.
//!
//! ```text
//! first server:  conversation ──▶ answer ──▶ (save) ──▶ end
//! next server:   start ──▶ /health ──▶ (restore) ──▶ next message ──▶ first token
//!
//! one server:    conversation ──▶ answer ──▶ (save) ──▶ sleep ──▶ (restore) ──▶ next message ──▶ first token
//! ```
//! The first server fills the page cache and the store, so no run is left uncounted.

use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::conversation::{Conversation, NEW_TOKENS, SLOT, room};
use super::server::Server;
use super::{Cache, CompareError, ModelFile, Runner, Side};
use crate::compare::measure::{Ratio, answers, speed};

/// Name of the file of a saved slot.
const FILE: &str = "conversation";

/// Additional argument of the server that continues: each run begins with an empty context.
const WIPE: &str = "--hugepage-wipe-context";

/// Option of a server that sleeps.
pub const SLEEP: &str = "--sleep-idle-seconds";

/// Seconds without a request before a sleep. The server counts the time of a restore too, and must not sleep again directly after it.
const IDLE: &str = "5";

/// What happens between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pause {
    /// The server ends, and another one starts.
    Restart,
    /// The server frees its model and its contexts, and the next request wakes it.
    Sleep,
}

impl Pause {
    /// Name of the case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Sleep => "sleep",
        }
    }
}

/// How the server gets the conversation after the pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// It computes the conversation again.
    Compute,
    /// It reads the file that was saved before.
    Restore,
    /// It maps the KV cache in the store.
    Keep,
}

/// All sides of the case `restart` or `sleep`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restart {
    /// Name of the model.
    pub model: String,
    /// The case.
    pub pause: Pause,
    /// Tokens of the conversation before the answer.
    pub conversation_tokens: u64,
    /// Tokens that a server with the whole conversation computes for the next message.
    pub new_tokens: u64,
    /// Tokens of the sides [`Resume::Restore`] and [`Resume::Keep`] that were compared.
    pub compared_tokens: usize,
    /// Those that differ, in the token or in a bit of its probability.
    pub different_tokens: usize,
    /// The sides.
    pub sides: Vec<RestartSide>,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestartSide {
    /// Name in the report.
    pub name: String,
    /// How its server gets the conversation after the pause.
    pub resume: Resume,
    /// Command line of the server after the pause.
    pub command: Vec<String>,
    /// All runs.
    pub runs: Vec<Restarted>,
}

/// One run: the pause, and what follows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restarted {
    /// The answer before the pause to the end of the process, with the save. For a sleep, to `is_sleeping` of `/props`, which includes
    /// the seconds without a request.
    pub seconds_to_end: f64,
    /// Process start of the next server to `/health` ok. `None` for a sleep.
    pub seconds_to_health: Option<f64>,
    /// Process start of the next server to the first token of the next message, with the restore. For a sleep, from the first request
    /// after it.
    pub seconds_to_token: f64,
    /// Tokens that the server computed for the next message. Source: `timings.prompt_n` of `/completion`.
    pub computed_tokens: u64,
    /// All tokens with their probabilities.
    #[serde(skip)]
    pub said: Vec<Value>,
}

impl Restart {
    /// The side that keeps the conversation in the store.
    pub fn kept(&self) -> Option<&RestartSide> {
        self.sides.iter().find(|side| side.resume == Resume::Keep)
    }

    /// Time to the first token of [`Self::kept`], divided by that of a side. `None` for the side itself.
    pub fn ratio(&self, side: &RestartSide) -> Option<Ratio> {
        let kept = self.kept().filter(|kept| kept.resume != side.resume)?;
        let runs = side.runs.iter().zip(&kept.runs);
        Ratio::of(runs.map(|(a, b)| (a.seconds_to_token, b.seconds_to_token)))
    }

    /// Compares the tokens of [`Resume::Restore`] and [`Resume::Keep`], run by run.
    fn compare(&mut self) {
        let of = |resume| {
            let sides = self.sides.iter().filter(move |side| side.resume == resume);
            sides.flat_map(|side| &side.runs)
        };
        let runs = of(Resume::Restore).zip(of(Resume::Keep));
        let (mut compared, mut different) = (0, 0);
        for (restored, kept) in runs {
            compared += kept.said.len();
            different += answers::differences(&restored.said, &kept.said);
        }
        (self.compared_tokens, self.different_tokens) = (compared, different);
    }
}

impl Runner<'_> {
    /// Pauses a server of each side in a conversation of `tokens` tokens, or of as many as fit into the context. Calls `told` before
    /// each run.
    ///
    /// # Errors
    /// Errors of a server.
    pub fn restart(
        &self,
        pause: Pause,
        model: &str,
        sides: &[(Resume, Side)],
        tokens: u32,
        told: impl Fn(&str),
    ) -> Result<Restart, CompareError> {
        let side = |(resume, side): &(Resume, Side)| RestartSide {
            name: side.name.clone(),
            resume: *resume,
            command: Vec::new(),
            runs: Vec::new(),
        };
        let mut result = Restart {
            model: model.to_owned(),
            pause,
            conversation_tokens: 0,
            new_tokens: NEW_TOKENS,
            compared_tokens: 0,
            different_tokens: 0,
            sides: sides.iter().map(side).collect(),
        };
        for pair in 0..self.pairs {
            let mut order: Vec<_> = sides.iter().zip(0..).collect();
            // A B C, C B A, A B C, …
            if pair % 2 == 1 {
                order.reverse();
            }
            for (side, at) in order {
                let (number, all, case) = (pair + 1, self.pairs, pause.name());
                told(&format!("{case}: run {number} of {all}, {}", side.1.name));
                let length = &mut result.conversation_tokens;
                let (run, command) = self.paused(pause, model, side, tokens, length)?;
                let measured: &mut RestartSide = &mut result.sides[at];
                measured.runs.push(run);
                measured.command = command;
            }
        }
        result.compare();
        Ok(result)
    }

    /// Sets `length` to the tokens of the conversation.
    fn paused(
        &self,
        pause: Pause,
        model: &str,
        (resume, side): &(Resume, Side),
        tokens: u32,
        length: &mut u64,
    ) -> Result<(Restarted, Vec<String>), CompareError> {
        let mut last = side.clone();
        if *resume == Resume::Keep {
            last.args.push(WIPE.to_owned());
        }
        if pause == Pause::Sleep {
            last.args.extend([SLEEP, IDLE].map(str::to_owned));
        }
        let first = match pause {
            Pause::Restart => side,
            Pause::Sleep => &last,
        };
        let mut first = Server::start(first, self.host())?;
        first.ready()?;
        first.keeps_context()?;
        let longest = first.slot_context()?.saturating_sub(room(self.tokens));
        *length = longest.min(tokens.into()).max(1);
        let mut talk = Conversation::new(model, *length);
        let answer = talk.begin(&mut first, self.tokens)?;
        let mut said = answer.said;
        if *resume == Resume::Restore {
            move_slot(&mut first, "save", "n_saved")?;
        }
        let prepare = || ModelFile::open(&side.model)?.prepare(Cache::Warm);
        let (mut next, began, seconds_to_end, seconds_to_health) = match pause {
            Pause::Restart => {
                drop(first);
                let seconds_to_end = answer.came.elapsed().as_secs_f64();
                prepare()?;
                let began = Instant::now();
                let mut next = Server::start(&last, self.host())?;
                let seconds_to_health = next.ready()?;
                (next, began, seconds_to_end, Some(seconds_to_health))
            }
            Pause::Sleep => {
                first.sleeps()?;
                let seconds_to_end = answer.came.elapsed().as_secs_f64();
                prepare()?;
                (first, Instant::now(), seconds_to_end, None)
            }
        };
        if *resume == Resume::Restore {
            move_slot(&mut next, "restore", "n_restored")?;
        }
        talk.add_message();
        let answer = talk.go_on(&mut next, 1)?;
        said.extend(answer.said);
        said.extend(talk.go_on(&mut next, self.tokens)?.said);
        let run = Restarted {
            seconds_to_end,
            seconds_to_health,
            seconds_to_token: (answer.came - began).as_secs_f64(),
            computed_tokens: answer.computed,
            said,
        };
        Ok((run, next.command()))
    }
}

/// Saves or restores the slot. `count` is the number of tokens in the answer.
fn move_slot(server: &mut Server<'_>, action: &str, count: &str) -> Result<(), CompareError> {
    let path = format!("/slots/{SLOT}?action={action}");
    let request = json!({ "filename": FILE });
    let (answer, _) = server.ask(&path, |agent, url| speed::post(agent, url, &request))?;
    match answer[count].as_u64() {
        Some(1..) => Ok(()),
        _ => Err(server.no_answer(&answer.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(resume: Resume, runs: &[(f64, f64)]) -> RestartSide {
        let run = |(seconds_to_token, logprob): &(f64, f64)| Restarted {
            seconds_to_end: 0.1,
            seconds_to_health: Some(0.1),
            seconds_to_token: *seconds_to_token,
            computed_tokens: NEW_TOKENS,
            said: vec![json!({ "id": 7 }), json!({ "id": 8, "logprob": logprob })],
        };
        RestartSide {
            name: String::new(),
            resume,
            command: Vec::new(),
            runs: runs.iter().map(run).collect(),
        }
    }

    fn restart(sides: Vec<RestartSide>) -> Restart {
        let mut restart = Restart {
            model: "m".into(),
            pause: Pause::Restart,
            conversation_tokens: 2048,
            new_tokens: NEW_TOKENS,
            compared_tokens: 0,
            different_tokens: 0,
            sides,
        };
        restart.compare();
        restart
    }

    #[test]
    fn a_ratio_is_that_of_the_kept_conversation_to_another_side() {
        let restart = restart(vec![
            side(Resume::Compute, &[(8.0, 0.5), (16.0, 0.5)]),
            side(Resume::Keep, &[(1.0, 0.5), (2.0, 0.5)]),
        ]);
        let [computes, keeps] = [0, 1].map(|at| restart.ratio(&restart.sides[at]));
        let ratio = computes.unwrap();
        assert!((ratio.mean - 0.125).abs() < 1e-12, "{ratio:?}");
        assert_eq!(ratio.n, 2);
        assert_eq!(keeps, None);
    }

    #[test]
    fn a_bit_of_a_probability_is_a_different_token() {
        let other = f64::from_bits(0.5_f64.to_bits() + 1);
        let restart = restart(vec![
            // Another number of tokens in a batch changes the last bits, so this side is not compared.
            side(Resume::Compute, &[(8.0, 0.25), (8.0, 0.25)]),
            side(Resume::Restore, &[(2.0, 0.5), (2.0, 0.5)]),
            side(Resume::Keep, &[(1.0, 0.5), (1.0, other)]),
        ]);
        assert_eq!((restart.compared_tokens, restart.different_tokens), (4, 1));
    }
}
