//! Minimal HTTP: a request, the status, the answer.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

fn agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(120)))
        .http_status_as_error(false);
    config.build().into()
}

/// `None` if nobody answers.
pub fn try_get(url: &str) -> Option<(u16, String)> {
    let mut response = agent().get(url).call().ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    Some((response.status().as_u16(), text))
}

pub fn get(url: &str) -> (u16, String) {
    try_get(url).unwrap_or_else(|| panic!("no answer from {url}"))
}

pub fn get_json(url: &str) -> Value {
    let (status, text) = get(url);
    assert_eq!(status, 200, "{url}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {error}: {text}"))
}

/// For a server that ends before it has answered.
pub fn post_and_forget(url: &str, body: &Value) {
    let _ = agent().post(url).send_json(body);
}

pub fn post_json(url: &str, body: &Value) -> Value {
    let (status, answer) = post(url, body);
    assert_eq!(status, 200, "{url}: {answer}");
    answer
}

pub fn post(url: &str, body: &Value) -> (u16, Value) {
    try_post(url, body).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// For a server that may end before it has answered.
pub fn try_post(url: &str, body: &Value) -> Result<(u16, Value), ureq::Error> {
    let mut response = agent().post(url).send_json(body)?;
    let text = response
        .body_mut()
        .with_config()
        .limit(1 << 30)
        .read_to_string()?;
    let answer = serde_json::from_str(&text);
    let answer = answer.unwrap_or_else(|error| panic!("{url}: {error}: {text}"));
    Ok((response.status().as_u16(), answer))
}
