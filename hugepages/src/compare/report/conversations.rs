//! The tables and sentences of the cases `restart`, `sleep`, `switch` and `traffic`.

use std::iter;

use super::markdown::{range, said};
use crate::compare::run::{
    Message, PERCENTILES, Pause, Restart, Restarted, SWITCH_MEASURES, Switch, Traffic,
};
use crate::stats::Summary;

impl Restart {
    /// Titles of [`Self::rows`], the first one without the model.
    pub const HEAD: [&str; 6] = [
        "",
        "to first token, s",
        "to /health ok, s",
        "to the end or the sleep, s",
        "computed tokens",
        "ratio of the kept context",
    ];

    /// A row for each side.
    pub fn rows(&self) -> impl Iterator<Item = [String; 6]> {
        self.sides.iter().map(|side| {
            let cell = |digits: usize, of: fn(&Restarted) -> Option<f64>| {
                let values: Vec<f64> = side.runs.iter().filter_map(of).collect();
                Summary::of(&values).map_or_else(|| "-".to_owned(), |spread| range(digits, spread))
            };
            [
                side.name.clone(),
                cell(2, |run| Some(run.seconds_to_token)),
                cell(2, |run| run.seconds_to_health),
                cell(2, |run| Some(run.seconds_to_end)),
                cell(0, |run| Some(run.computed_tokens as f64)),
                self.ratio(side).map_or_else(|| "-".to_owned(), said),
            ]
        })
    }

    /// Describes the case in a sentence.
    pub fn sentence(&self) -> String {
        let who = match self.pause {
            Pause::Restart => "A new server",
            Pause::Sleep => "After a sleep, the server",
        };
        format!(
            "{who} continues a conversation of {} tokens with a message; {} tokens are new. Of {} tokens of the restored slot \
             and of the kept context, {} differ in the token or its probabilities.",
            self.conversation_tokens, self.new_tokens, self.compared_tokens, self.different_tokens
        )
    }
}

impl Switch {
    /// For each conversation its name, and then name, A, B and ratio of each measure.
    pub fn rows(&self) -> impl Iterator<Item = [String; 4]> {
        self.talks.iter().flat_map(|talk| {
            let name = format!("{}, {} tokens", talk.model, talk.conversation_tokens);
            let measures = SWITCH_MEASURES.iter().map(|measure| {
                let (a, b): (Vec<_>, Vec<_>) = talk.values(measure).into_iter().unzip();
                let cell = |values: &[f64]| {
                    let spread = Summary::of(values);
                    spread.map_or_else(|| "-".to_owned(), |spread| range(measure.digits, spread))
                };
                let ratio = talk.ratios.get(measure.id).copied();
                [
                    format!("  {}", measure.title),
                    cell(&a),
                    cell(&b),
                    ratio.map_or_else(|| "-".to_owned(), said),
                ]
            });
            iter::once([name, String::new(), String::new(), String::new()]).chain(measures)
        })
    }

    /// Describes the case in a sentence.
    pub fn sentence(&self) -> String {
        format!(
            "A router runs one of {} models at a time. Each request is the next message to a model after another model was in use; {} \
             tokens are new. Of {} tokens of the kept context, {} differ in the token or its probabilities from those of a server \
             without a switch.",
            self.models.len(),
            self.new_tokens,
            self.compared_tokens,
            self.different_tokens
        )
    }
}

impl Traffic {
    /// Name, A, B and ratio of each percentile, and the largest number of computed tokens.
    pub fn rows(&self) -> impl Iterator<Item = [String; 4]> {
        let [a, b] = [0, 1].map(|side| self.sorted(side));
        let percentiles = PERCENTILES.iter().map(move |percentile| {
            let cell = |times: &[f64]| {
                let time = percentile.of(times);
                time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
            };
            let ratio = self.ratios.get(percentile.id).copied();
            [
                format!("{} to the first token, s", percentile.id),
                cell(&a),
                cell(&b),
                ratio.map_or_else(|| "-".to_owned(), said),
            ]
        });
        let [a, b] = [0, 1].map(|side| {
            let tokens = self.messages(side).map(|message| message.computed_tokens);
            tokens.max().unwrap_or_default().to_string()
        });
        percentiles.chain([["most computed tokens".to_owned(), a, b, "-".to_owned()]])
    }

    /// Describes the case in a sentence.
    pub fn sentence(&self) -> String {
        let is_switch = |message: &&Message| message.is_switch;
        format!(
            "A router runs one of {} models at a time. Each side gets the same {} messages, each to a model that chance chooses; {} of \
             them go to another model than the message before. The longest conversation has {} tokens.",
            self.models.len(),
            self.messages(1).count(),
            self.messages(1).filter(is_switch).count(),
            self.conversation_tokens
        )
    }
}
