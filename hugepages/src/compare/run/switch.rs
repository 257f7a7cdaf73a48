//! The next message to a model behind a router, after another model was in use.
//!
//! ```text
//! to the router:  conversation with A, with B │ message to A ──▶ B ends, A starts ──▶ first token ──▶ answer │ message to B ──▶ …
//!                 not measured                │ measured                                                      │ measured
//! ```
//! The conversations fill the page cache and the store, so no run is left uncounted.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use serde::Serialize;
use serde_json::Value;

use super::conversation::{Conversation, NEW_TOKENS, room};
use super::server::Server;
use super::{Cache, CompareError, ModelFile, Runner, Side};
use crate::compare::measure::{Ratio, answers};

/// A model behind a router.
#[derive(Clone, Debug)]
pub struct RoutedModel {
    /// Name in the report.
    pub name: String,
    /// The baseline and ours, with this model. A router gets the same arguments, and passes them to its servers.
    pub sides: [Side; 2],
}

/// Result of the case `switch`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Switch {
    /// Names of the models, in the order of their use.
    pub models: Vec<String>,
    /// Names of both sides, the baseline first.
    pub sides: [String; 2],
    /// Command lines of both routers.
    pub commands: [Vec<String>; 2],
    /// Tokens that a server with the whole conversation computes for the next message.
    pub new_tokens: u64,
    /// Tokens of our side that were compared with those of a server that was never interrupted.
    pub compared_tokens: usize,
    /// Those that differ, in the token or in a bit of its probability.
    pub different_tokens: usize,
    /// A conversation of each length with each model.
    pub talks: Vec<SwitchTalk>,
}

/// All switches in the conversations of one length with one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SwitchTalk {
    /// Name of the model.
    pub model: String,
    /// Tokens of the conversation before its first message.
    pub conversation_tokens: u64,
    /// Ratio B / A of each measure, by its id.
    pub ratios: BTreeMap<&'static str, Ratio>,
    /// Pairs of a switch of A and a switch of B.
    pub pairs: Vec<[Switched; 2]>,
    /// Number of the model in the directory of the router.
    #[serde(skip)]
    number: usize,
    /// Tokens of a server that was never interrupted.
    #[serde(skip)]
    said: Vec<Value>,
}

/// One switch to a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Switched {
    /// The request to the first token of the answer.
    pub seconds_to_token: f64,
    /// The request to the whole answer.
    pub seconds_to_answer: f64,
    /// Time that the server computed the tokens of the request. Source: `timings.prompt_ms` of `/completion`.
    pub computed_seconds: f64,
    /// Tokens that the server computed for the request. Source: `timings.prompt_n` of `/completion`.
    pub computed_tokens: u64,
    /// Tokens of the conversation with their probabilities.
    #[serde(skip)]
    said: Vec<Value>,
}

/// A value of a switch.
#[derive(Clone, Copy, Debug)]
pub struct SwitchMeasure {
    /// Name in the JSON.
    pub id: &'static str,
    /// Name and unit in a table.
    pub title: &'static str,
    /// Digits behind the point in a table.
    pub digits: usize,
    /// The value.
    pub of: fn(&Switched) -> f64,
}

/// All measures of a switch.
pub const SWITCH_MEASURES: [SwitchMeasure; 4] = [
    SwitchMeasure {
        id: "to_token",
        title: "to first token, s",
        digits: 3,
        of: |run| run.seconds_to_token,
    },
    SwitchMeasure {
        id: "to_ready",
        title: "without the prompt, s",
        digits: 3,
        of: |run| run.seconds_to_token - run.computed_seconds,
    },
    SwitchMeasure {
        id: "to_answer",
        title: "to the full answer, s",
        digits: 3,
        of: |run| run.seconds_to_answer,
    },
    SwitchMeasure {
        id: "computed",
        title: "computed tokens",
        digits: 0,
        of: |run| run.computed_tokens as f64,
    },
];

impl SwitchTalk {
    fn new(model: &str, number: usize, conversation_tokens: u64) -> Self {
        Self {
            model: model.to_owned(),
            conversation_tokens,
            ratios: BTreeMap::new(),
            pairs: Vec::new(),
            number,
            said: Vec::new(),
        }
    }

    /// Values of A and of B, in pairs.
    pub fn values(&self, measure: &SwitchMeasure) -> Vec<(f64, f64)> {
        let pairs = self.pairs.iter();
        pairs
            .map(|[a, b]| ((measure.of)(a), (measure.of)(b)))
            .collect()
    }

    fn finish(&mut self) {
        let ratio = |measure: &SwitchMeasure| Some((measure.id, Ratio::of(self.values(measure))?));
        self.ratios = SWITCH_MEASURES.iter().filter_map(ratio).collect();
    }
}

impl Switch {
    /// The most tokens that our side computed for a request.
    pub fn computed_tokens(&self) -> Option<u64> {
        let pairs = self.talks.iter().flat_map(|talk| &talk.pairs);
        pairs.map(|[_, ours]| ours.computed_tokens).max()
    }

    /// Computes the ratios, and compares the tokens of our side with those of a server that was never interrupted. Those of stock are
    /// not compared: another number of tokens in a batch changes the last bits.
    fn finish(&mut self) {
        for talk in &mut self.talks {
            talk.finish();
            for [_, ours] in &talk.pairs {
                self.compared_tokens += talk.said.len();
                self.different_tokens += answers::differences(&talk.said, &ours.said);
            }
        }
    }
}

/// Makes the directory of a router: a directory for each model, with links to its files. The numbers are the names, because two models
/// may have the same file name.
///
/// # Errors
/// A file is missing, or the directory cannot be written.
pub fn link_models<'a>(dir: &Path, models: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    for (number, first) in models.enumerate() {
        let dir = dir.join(number.to_string());
        fs::create_dir(&dir)?;
        let files = ModelFile::open(first).map_err(io::Error::other)?;
        for path in files.paths() {
            // A router finds a model by the end of its name, and some names mean a companion of a model.
            let name = match files.paths() {
                [_] => "model.gguf".as_ref(),
                _ => path.file_name().unwrap_or_default(),
            };
            symlink(fs::canonicalize(path)?, dir.join(name))?;
        }
    }
    Ok(())
}

impl Runner<'_> {
    /// Switches between models behind a router of each side. `dir` is the directory of [`link_models`]. A conversation has one of
    /// `lengths` tokens, or as many as fit into the smallest context. Calls `told` before each run.
    ///
    /// # Errors
    /// Errors of a server.
    pub fn switch(
        &self,
        models: &[RoutedModel],
        dir: &Path,
        lengths: &[u32],
        told: impl Fn(&str),
    ) -> Result<Switch, CompareError> {
        told("switch: context sizes");
        let lengths = shortened(lengths, self.longest(models)?);
        let mut result = Switch {
            models: models.iter().map(|model| model.name.clone()).collect(),
            sides: [0, 1].map(|at| models[0].sides[at].name.clone()),
            commands: [Vec::new(), Vec::new()],
            new_tokens: NEW_TOKENS,
            compared_tokens: 0,
            different_tokens: 0,
            talks: Vec::new(),
        };
        for length in lengths {
            let talks = models.iter().enumerate();
            result
                .talks
                .extend(talks.map(|(number, model)| SwitchTalk::new(&model.name, number, length)));
        }
        for (number, model) in models.iter().enumerate() {
            told(&format!("switch: {} without a switch", model.name));
            let talks = result.talks.iter_mut();
            self.uninterrupted(model, talks.filter(|talk| talk.number == number))?;
        }
        for pair in 0..self.pairs {
            let ([a, b], commands) =
                self.routers("switch", pair, models, dir, &told, |router| {
                    self.switched(router, models.len(), &result.talks)
                })?;
            result.commands = commands;
            for (talk, (a, b)) in result.talks.iter_mut().zip(a.into_iter().zip(b)) {
                talk.pairs.push([a, b]);
            }
        }
        result.finish();
        Ok(result)
    }

    /// Tokens of the longest conversation that fits into the context of every model.
    pub(super) fn longest(&self, models: &[RoutedModel]) -> Result<u64, CompareError> {
        let mut longest = u64::MAX;
        for model in models {
            let mut server = Server::start(&model.sides[0], self.host())?;
            server.ready()?;
            longest = longest.min(server.slot_context()?.saturating_sub(room(self.tokens)));
        }
        Ok(longest)
    }

    /// The tokens of a server that has nothing to do but these conversations.
    fn uninterrupted<'t>(
        &self,
        model: &RoutedModel,
        talks: impl Iterator<Item = &'t mut SwitchTalk>,
    ) -> Result<(), CompareError> {
        let mut server = Server::start(&model.sides[0], self.host())?;
        server.ready()?;
        for talk in talks {
            let begun = self.begin(&mut server, talk)?;
            talk.said = self.go_on(&mut server, begun)?.said;
        }
        Ok(())
    }

    /// A pair of runs, in the order A B, B A, A B, … Each run starts a router of a side. Returns what `run` measured with each router, and
    /// the command lines of both.
    pub(super) fn routers<T: Default>(
        &self,
        case: &str,
        pair: usize,
        models: &[RoutedModel],
        dir: &Path,
        told: impl Fn(&str),
        mut run: impl FnMut(&mut Server<'_>) -> Result<T, CompareError>,
    ) -> Result<([T; 2], [Vec<String>; 2]), CompareError> {
        let (mut runs, mut commands) = ([T::default(), T::default()], [Vec::new(), Vec::new()]);
        for at in if pair.is_multiple_of(2) {
            [0, 1]
        } else {
            [1, 0]
        } {
            let side = &models[0].sides[at];
            let (number, all, name) = (pair + 1, self.pairs, &side.name);
            told(&format!("{case}: pair {number} of {all}, {name}"));
            let files = models
                .iter()
                .map(|model| ModelFile::open(&model.sides[at].model));
            let files: Vec<_> = files.collect::<Result<_, _>>()?;
            for file in &files {
                file.prepare(Cache::Warm)?;
            }
            // The last model can evict the first one.
            for file in &files {
                file.stays_warm()?;
            }
            let mut router = Server::start_router(side, dir, self.host())?;
            router.ready()?;
            runs[at] = run(&mut router)?;
            commands[at] = router.command();
        }
        Ok((runs, commands))
    }

    /// A switch for each conversation.
    fn switched(
        &self,
        router: &mut Server<'_>,
        models: usize,
        talks: &[SwitchTalk],
    ) -> Result<Vec<Switched>, CompareError> {
        let mut runs = Vec::new();
        // All conversations of a length begin before the first one goes on, so another model was in use before each measured request.
        for talks in talks.chunks(models) {
            let mut begun = Vec::new();
            for talk in talks {
                begun.push(self.begin(router, talk)?);
                router.keeps_context()?;
            }
            for begun in begun {
                runs.push(self.go_on(router, begun)?);
            }
        }
        Ok(runs)
    }

    /// A conversation with its first message and the answer.
    fn begin(&self, server: &mut Server<'_>, talk: &SwitchTalk) -> Result<Begun, CompareError> {
        let name = talk.number.to_string();
        let mut conversation = Conversation::new(&name, talk.conversation_tokens);
        conversation.add_message();
        let said = conversation.begin(server, self.tokens)?.said;
        Ok(Begun { conversation, said })
    }

    /// The next message: its first token, and then the rest of the answer.
    fn go_on(&self, server: &mut Server<'_>, begun: Begun) -> Result<Switched, CompareError> {
        let Begun {
            mut conversation,
            mut said,
        } = begun;
        conversation.add_message();
        let asked = Instant::now();
        let first = conversation.go_on(server, 1)?;
        let rest = conversation.go_on(server, self.tokens)?;
        said.extend(first.said);
        said.extend(rest.said);
        let seconds_to = |came: Instant| (came - asked).as_secs_f64();
        Ok(Switched {
            seconds_to_token: seconds_to(first.came),
            seconds_to_answer: seconds_to(rest.came),
            computed_seconds: first.computed_seconds,
            computed_tokens: first.computed,
            said,
        })
    }
}

/// A conversation with the tokens of its answers so far, and their probabilities.
struct Begun {
    conversation: Conversation,
    said: Vec<Value>,
}

/// The lengths in ascending order, none above `longest`, and none twice.
fn shortened(lengths: &[u32], longest: u64) -> Vec<u64> {
    let lengths = lengths.iter().map(|length| longest.min((*length).into()));
    let mut lengths: Vec<u64> = lengths.collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn switched(seconds_to_token: f64, computed_tokens: u64, logprob: f64) -> Switched {
        Switched {
            seconds_to_token,
            seconds_to_answer: 2.0 * seconds_to_token,
            computed_seconds: seconds_to_token / 2.0,
            computed_tokens,
            said: vec![json!({ "id": 7, "logprob": logprob })],
        }
    }

    fn switch(pairs: Vec<[Switched; 2]>) -> Switch {
        let mut talk = SwitchTalk::new("m", 0, 2048);
        talk.pairs = pairs;
        talk.said = vec![json!({ "id": 7, "logprob": 0.5 })];
        let mut switch = Switch {
            models: vec!["m".into(), "n".into()],
            sides: ["stock".into(), "kept context".into()],
            commands: [Vec::new(), Vec::new()],
            new_tokens: NEW_TOKENS,
            compared_tokens: 0,
            different_tokens: 0,
            talks: vec![talk],
        };
        switch.finish();
        switch
    }

    #[test]
    fn a_ratio_is_that_of_the_kept_context_to_stock() {
        let switch = switch(vec![
            [switched(8.0, 2072, 0.5), switched(1.0, 11, 0.5)],
            [switched(16.0, 2072, 0.5), switched(2.0, 11, 0.5)],
        ]);
        let ratios = &switch.talks[0].ratios;
        for id in ["to_token", "to_answer", "to_ready"] {
            assert!((ratios[id].mean - 0.125).abs() < 1e-12, "{ratios:?}");
        }
        assert_eq!(ratios["computed"].n, 2);
        assert_eq!(switch.computed_tokens(), Some(11));
    }

    #[test]
    fn only_the_tokens_of_the_kept_context_are_compared_with_those_of_an_uninterrupted_server() {
        let other = f64::from_bits(0.5_f64.to_bits() + 1);
        let switch = switch(vec![
            [switched(8.0, 2072, 0.25), switched(1.0, 11, 0.5)],
            [switched(8.0, 2072, 0.25), switched(1.0, 11, other)],
        ]);
        assert_eq!((switch.compared_tokens, switch.different_tokens), (2, 1));
    }

    #[test]
    fn a_length_that_does_not_fit_becomes_the_longest_one_once() {
        assert_eq!(shortened(&[8192, 0, 2048, 32768], 4000), [0, 2048, 4000]);
        assert_eq!(shortened(&[0, 2048], 4000), [0, 2048]);
    }

    #[test]
    fn models_with_the_same_file_name_have_a_directory_each() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| dir.path().join(name).join("model.gguf"));
        for file in &files {
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(file, file.to_str().unwrap()).unwrap();
        }
        let links = dir.path().join("links");
        fs::create_dir(&links).unwrap();
        link_models(&links, files.iter().map(AsRef::as_ref)).unwrap();
        for (number, file) in ["0", "1"].iter().zip(&files) {
            let read = fs::read_to_string(links.join(number).join("model.gguf")).unwrap();
            assert_eq!(read, file.to_str().unwrap());
        }
    }
}
