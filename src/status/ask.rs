//! One HTTP request with a short time limit to a server on this machine.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

const TO_CONNECT: Duration = Duration::from_millis(300);
const TO_ANSWER: Duration = Duration::from_secs(1);
/// Limit for an answer: `/props` contains the chat template, which can be long.
const MAX_BYTES: usize = 4 << 20;

/// State of a server at `/health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The server answers requests.
    Ready,
    /// The server does not answer, or is loading.
    Loading,
    /// The tool cannot ask the server: its port is unknown, or it has no local address.
    Unknown,
}

/// `GET /health` of a server on this machine.
pub fn health(host: &str, port: &str, prefix: &str) -> Health {
    let answer = if Path::new(host).extension().is_some_and(|it| it == "sock") {
        UnixStream::connect(host)
            .map_err(|error| error.to_string())
            .and_then(|stream| {
                get(
                    stream,
                    UnixStream::set_read_timeout,
                    "localhost",
                    prefix,
                    "/health",
                )
            })
    } else {
        match address_of(host, port) {
            Err(_) => return Health::Unknown,
            Ok(address) => get_tcp(address, prefix, "/health"),
        }
    };
    match answer.as_deref().map(code) {
        Ok("200") => Health::Ready,
        _ => Health::Loading,
    }
}

/// `GET /props`. The error is a message for the user.
pub fn props(host: &str, port: &str, prefix: &str) -> Result<Value, String> {
    body(&get_tcp(address_of(host, port)?, prefix, "/props")?)
}

fn address_of(host: &str, port: &str) -> Result<SocketAddr, String> {
    // A server on all addresses listens on the loopback address, too.
    let host = match host {
        "0.0.0.0" | "localhost" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or("unknown port")?;
    local_address(host, port).ok_or_else(|| "no local address".to_owned())
}

fn get_tcp(address: SocketAddr, prefix: &str, path: &str) -> Result<String, String> {
    let error = |error: io::Error| format!("no answer: {error}");
    let stream = TcpStream::connect_timeout(&address, TO_CONNECT).map_err(error)?;
    stream.set_write_timeout(Some(TO_ANSWER)).map_err(error)?;
    let host = address.to_string();
    get(stream, TcpStream::set_read_timeout, &host, prefix, path)
}

/// The whole answer, head and body.
fn get<S: Read + Write>(
    mut stream: S,
    set_timeout: impl Fn(&S, Option<Duration>) -> io::Result<()>,
    host: &str,
    prefix: &str,
    path: &str,
) -> Result<String, String> {
    let error = |error: io::Error| format!("no answer: {error}");
    let deadline = Instant::now() + TO_ANSWER;
    write!(
        stream,
        "GET {prefix}{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .map_err(error)?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() > MAX_BYTES {
            return Err("no answer within the time limit".to_owned());
        }
        set_timeout(&stream, Some(left)).map_err(error)?;
        match stream.read(&mut piece).map_err(error)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
}

/// Parses numeric addresses only, without a name lookup.
fn local_address(host: &str, port: u16) -> Option<SocketAddr> {
    let ip: std::net::IpAddr = host.parse().ok()?;
    (ip, port).to_socket_addrs().ok()?.next()
}

/// The status code of an answer.
fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn body(answer: &str) -> Result<Value, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    match code(head) {
        "200" => serde_json::from_str(body).map_err(|_| "the answer is not JSON".to_owned()),
        "401" => Err("the server requires an API key".to_owned()),
        "503" => Err("the server is loading".to_owned()),
        code => Err(format!("HTTP status {code}")),
    }
}
