//! Notifies a service manager when the server is ready: `Type=notify` of systemd.
//!
//! The server reports at `/health` when its models are loaded. This module then sends a message to `NOTIFY_SOCKET`.
//! The protocol is one datagram, see `sd_notify(3)`. Without that variable nothing happens here.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Interval of requests to `/health`.
const PAUSE: Duration = Duration::from_millis(50);

/// Limit for one answer.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(PartialEq, Eq)]
enum Health {
    Ready,
    /// The server does not answer, or is loading.
    Loading,
    /// This module cannot ask the server: HTTPS, an unknown port, or no local address.
    Unknown,
}

/// Starts to watch this process, which then runs a server with these arguments. Returns at once.
///
/// A server with HTTPS or an unknown port counts as ready when it starts, because the service manager would kill a service
/// that never becomes ready.
pub fn when_ready(arguments: &[OsString]) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    let server = Server::of(arguments);
    let watch = move || {
        while server.health() == Health::Loading {
            thread::sleep(PAUSE);
        }
        // An error has no receiver.
        let _ = send(&socket, b"READY=1\nSTATUS=ready to answer");
    };
    // Without a thread, the service manager reports a timeout.
    let _ = thread::Builder::new().name("notify".into()).spawn(watch);
}

/// Address of the server.
struct Server {
    host: String,
    port: String,
    prefix: String,
    is_https: bool,
}

impl Server {
    fn of(arguments: &[OsString]) -> Self {
        let words: Vec<String> = arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let get = |option: &str, variable: &str| {
            argument(&words, option).or_else(|| env::var(variable).ok())
        };
        let hosts = get("--host", "LLAMA_ARG_HOST").unwrap_or_default();
        let host = hosts.split(',').next().unwrap_or_default().trim();
        Self {
            host: if host.is_empty() { "127.0.0.1" } else { host }.to_owned(),
            port: get("--port", "LLAMA_ARG_PORT").unwrap_or_else(|| "8080".to_owned()),
            prefix: get("--api-prefix", "LLAMA_ARG_API_PREFIX").unwrap_or_default(),
            is_https: get("--ssl-key-file", "LLAMA_ARG_SSL_KEY_FILE").is_some(),
        }
    }

    fn health(&self) -> Health {
        if self.is_https {
            return Health::Unknown;
        }
        let is_ready = if Path::new(&self.host)
            .extension()
            .is_some_and(|it| it == "sock")
        {
            UnixStream::connect(&self.host).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                self.is_ready(stream)
            })
        } else {
            // A server on all addresses listens on the loopback address, too.
            let host = match self.host.as_str() {
                "0.0.0.0" | "localhost" => "127.0.0.1",
                "::" => "::1",
                host => host,
            };
            let (Ok(address), Ok(port)) = (host.parse::<IpAddr>(), self.port.parse::<u16>()) else {
                return Health::Unknown;
            };
            if port == 0 {
                return Health::Unknown;
            }
            TcpStream::connect_timeout(&(address, port).into(), PATIENCE).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                self.is_ready(stream)
            })
        };
        if is_ready.unwrap_or(false) {
            Health::Ready
        } else {
            Health::Loading
        }
    }

    /// Whether `/health` answers 200. Written here, because one status code needs no HTTP client among the library's dependencies.
    fn is_ready(&self, mut stream: impl Read + Write) -> io::Result<bool> {
        write!(
            stream,
            "GET {}/health HTTP/1.0\r\nHost: localhost\r\n\r\n",
            self.prefix
        )?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    }
}

/// The value of the last of these options, in llama.cpp's form `--option value`.
fn argument(words: &[String], option: &str) -> Option<String> {
    let pair = words.windows(2).rfind(|pair| pair[0] == option)?;
    Some(pair[1].clone())
}

/// Written here, because the crate `sd-notify` (0.5) cannot send to abstract sockets.
fn send(socket: &OsString, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    Ok(())
}
