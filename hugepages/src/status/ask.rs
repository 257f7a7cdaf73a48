//! One HTTP request with a short time limit to a server on this machine.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

const TO_CONNECT: Duration = Duration::from_millis(300);
const TO_ANSWER: Duration = Duration::from_secs(1);
/// Limit for an answer: `/props` contains the chat template, which can be long.
const MAX_BYTES: u64 = 4 << 20;

/// `GET /props`. The error is a message for the user.
pub fn props(host: &str, port: &str, prefix: &str) -> Result<Value, String> {
    let address = address_of(host, port)?;
    let agent: Agent = Agent::config_builder()
        .timeout_connect(Some(TO_CONNECT))
        .timeout_global(Some(TO_ANSWER))
        .http_status_as_error(false)
        // A proxy of the environment cannot reach this machine's loopback address.
        .proxy(None)
        .build()
        .into();
    let failed = |error: ureq::Error| match error {
        ureq::Error::Timeout(_) => "no answer within the time limit".to_owned(),
        ureq::Error::Io(error) => format!("no answer: {error}"),
        ureq::Error::Http(_) | ureq::Error::Protocol(_) => "no HTTP answer".to_owned(),
        error => format!("no answer: {error}"),
    };
    let answer = agent.get(format!("http://{address}{prefix}/props")).call();
    let mut answer = answer.map_err(failed)?;
    match answer.status().as_u16() {
        200 => {
            let body = answer.body_mut().with_config().limit(MAX_BYTES);
            let body = body.read_to_vec().map_err(failed)?;
            serde_json::from_slice(&body).map_err(|_| "the answer is not JSON".to_owned())
        }
        401 => Err("the server requires an API key".to_owned()),
        503 => Err("the server is loading".to_owned()),
        code => Err(format!("HTTP status {code}")),
    }
}

/// Parses numeric addresses only, without a name lookup.
fn address_of(host: &str, port: &str) -> Result<SocketAddr, String> {
    // A server on all addresses listens on the loopback address, too.
    let host = match host {
        "0.0.0.0" | "localhost" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let port = port.parse().ok().filter(|port: &u16| *port > 0);
    let port = port.ok_or("unknown port")?;
    let ip: IpAddr = host.parse().map_err(|_| "no local address")?;
    Ok((ip, port).into())
}
