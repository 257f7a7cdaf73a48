//! One HTTP request to a server on this machine, which gets little time to answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::Value;

const TO_CONNECT: Duration = Duration::from_millis(300);
const TO_ANSWER: Duration = Duration::from_secs(1);
/// `/props` has the chat template in it, and that may be long.
const MAX_BYTES: usize = 4 << 20;

/// `GET /props`. An error is the reason, for people.
pub fn props(host: &str, port: &str, prefix: &str) -> Result<Value, String> {
    // What listens everywhere listens here too.
    let host = match host {
        "0.0.0.0" | "localhost" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or("its port is not known")?;
    let address = local_address(host, port).ok_or("it does not listen on a local address")?;
    let error = |error: std::io::Error| format!("no answer: {error}");
    let deadline = Instant::now() + TO_ANSWER;
    let mut stream = TcpStream::connect_timeout(&address, TO_CONNECT).map_err(error)?;
    stream.set_write_timeout(Some(TO_ANSWER)).map_err(error)?;
    write!(
        stream,
        "GET {prefix}/props HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .map_err(error)?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() > MAX_BYTES {
            return Err("no answer in time".to_owned());
        }
        stream.set_read_timeout(Some(left)).map_err(error)?;
        match stream.read(&mut piece).map_err(error)? {
            0 => return body(&answer),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
}

/// Only numbers: no name is looked up.
fn local_address(host: &str, port: u16) -> Option<SocketAddr> {
    let ip: std::net::IpAddr = host.parse().ok()?;
    (ip, port).to_socket_addrs().ok()?.next()
}

fn body(answer: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    match code {
        "200" => serde_json::from_str(body).map_err(|_| "its answer is no JSON".to_owned()),
        "401" => Err("it wants an API key".to_owned()),
        "503" => Err("it is loading".to_owned()),
        code => Err(format!("it answered {code}")),
    }
}
