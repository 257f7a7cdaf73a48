//! Tokens a second, timed by the server, and the time between two tokens, timed by the client.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use ureq::Agent;

use crate::stats;

/// Number of parallel requests.
const STREAMS: usize = 4;

/// Long enough to need a matrix product if a token is a word, and short enough if a token is a letter.
const PROMPT: &str = "The kernel keeps what was read of a file in memory, as long as nothing else needs that memory. Each page \
    of it has an entry in a table.";

/// Speed of a server. The rates are the server's `timings` in the answer of `/completion`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt_tokens: f64,
    /// Tokens of the prompt a second, in one request.
    pub prompt_per_second: f64,
    /// Tokens a second, in one request.
    pub generation_per_second: f64,
    /// Milliseconds between the arrivals of two tokens of this request at the client.
    pub latencies_ms: Vec<f64>,
    /// Speed with parallel requests.
    pub parallel: Option<Parallel>,
}

/// Speed of parallel requests in total.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parallel {
    /// Number of requests.
    pub streams: usize,
    /// Tokens of all prompts, divided by the longest time of one request.
    pub prompt_per_second: f64,
    /// Generated tokens of all requests, divided by the longest time of one request.
    pub generation_per_second: f64,
}

/// `timings` of an answer.
struct Timings {
    prompt_tokens: f64,
    prompt_ms: f64,
    tokens: f64,
    tokens_ms: f64,
}

impl Timings {
    fn of(answer: &Value) -> Result<Self, String> {
        let of = |name: &str| answer["timings"][name].as_f64();
        let all = || {
            Some(Self {
                prompt_tokens: of("prompt_n")?,
                prompt_ms: of("prompt_ms")?,
                tokens: of("predicted_n")?,
                tokens_ms: of("predicted_ms")?,
            })
        };
        all().ok_or_else(|| format!("no timings: {answer}"))
    }
}

impl Speed {
    /// Measures one request, and then [`STREAMS`] parallel requests, with this number of tokens each.
    pub(in crate::compare) fn measure(
        agent: &Agent,
        url: &str,
        tokens: u32,
    ) -> Result<Self, String> {
        let (alone, latencies_ms) = stream(agent, url, &request(PROMPT, tokens))?;
        let together = side_by_side(agent, url, tokens)?;
        Ok(Self {
            prompt_tokens: alone.prompt_tokens,
            prompt_per_second: rate(alone.prompt_tokens, alone.prompt_ms),
            generation_per_second: rate(alone.tokens, alone.tokens_ms),
            latencies_ms,
            parallel: Some(together),
        })
    }

    /// A percentile of the latencies; 0 without latencies.
    pub fn latency_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_by(f64::total_cmp);
        stats::percentile(&sorted, percent).unwrap_or_default()
    }
}

/// Tokens a second of one request with a short prompt.
pub fn generation(agent: &Agent, url: &str, tokens: u32) -> Result<f64, String> {
    let (answer, _) = post(agent, url, &request("a", tokens))?;
    let timings = Timings::of(&answer)?;
    Ok(rate(timings.tokens, timings.tokens_ms))
}

fn rate(count: f64, ms: f64) -> f64 {
    // A time of zero means that the server did not report it.
    if ms > 0.0 { count * 1e3 / ms } else { 0.0 }
}

fn request(prompt: &str, tokens: u32) -> Value {
    json!({
        "prompt": prompt, "n_predict": tokens, "temperature": 0, "seed": 1, "cache_prompt": false,
        // Every run must do the same work.
        "ignore_eos": true,
    })
}

/// The answer to a request, and its time.
pub fn post(agent: &Agent, url: &str, request: &Value) -> Result<(Value, Instant), String> {
    let answer = agent.post(url).send_json(request);
    let answer = answer.map_err(|error| error.to_string())?;
    let answer: Value = answer
        .into_body()
        .read_json()
        .map_err(|error| error.to_string())?;
    Ok((answer, Instant::now()))
}

/// Server-sent events: a line `data: {…}` for each token. The last one has the timings.
fn stream(agent: &Agent, url: &str, request: &Value) -> Result<(Timings, Vec<f64>), String> {
    let mut request = request.clone();
    request["stream"] = true.into();
    let answer = agent.post(url).send_json(&request);
    let answer = answer.map_err(|error| error.to_string())?;
    let mut latencies = Vec::new();
    let (mut last_token, mut last) = (None::<Instant>, Value::Null);
    for line in BufReader::new(answer.into_body().into_reader()).lines() {
        let line = line.map_err(|error| error.to_string())?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let now = Instant::now();
        last = serde_json::from_str(data).unwrap_or_default();
        if last["timings"].is_object() {
            break;
        }
        if let Some(before) = last_token.replace(now) {
            latencies.push((now - before).as_secs_f64() * 1e3);
        }
    }
    Ok((Timings::of(&last)?, latencies))
}

fn side_by_side(agent: &Agent, url: &str, tokens: u32) -> Result<Parallel, String> {
    let timings: Vec<Timings> = thread::scope(|scope| {
        let all: Vec<_> = (0..STREAMS)
            .map(|number| {
                // The prompts differ from the first word on, so no request reuses the cache of another request.
                let request = request(&format!("{number}. {PROMPT}"), tokens);
                scope.spawn(move || {
                    let (answer, _) = post(agent, url, &request)?;
                    Timings::of(&answer)
                })
            })
            .collect();
        let joined = all.into_iter().map(|thread| {
            let lost = |_| Err("a request thread ended without an answer".to_owned());
            thread.join().unwrap_or_else(lost)
        });
        joined.collect::<Result<_, _>>()
    })?;
    let together = |count: fn(&Timings) -> f64, ms: fn(&Timings) -> f64| {
        let longest = timings.iter().map(ms).fold(0.0, f64::max);
        rate(timings.iter().map(count).sum(), longest)
    };
    Ok(Parallel {
        streams: STREAMS,
        prompt_per_second: together(|t| t.prompt_tokens, |t| t.prompt_ms),
        generation_per_second: together(|t| t.tokens, |t| t.tokens_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_all_tokens_come_within_the_median() {
        let speed = Speed {
            prompt_tokens: 1.0,
            prompt_per_second: 1.0,
            generation_per_second: 1.0,
            latencies_ms: (1..=200).rev().map(f64::from).collect(),
            parallel: None,
        };
        assert_eq!((speed.latency_ms(50), speed.latency_ms(99)), (100.0, 198.0));
    }

    #[test]
    fn an_answer_without_timings_is_told() {
        let error = Timings::of(&json!({ "error": "busy" })).err().unwrap();
        assert!(error.contains("no timings") && error.contains("busy"));
    }
}
