//! Notifies a service manager when the server is ready: `Type=notify` of systemd.
//!
//! The server reports at `/health` when its models are loaded. This module then sends a message to `NOTIFY_SOCKET`.
//! The protocol is one datagram, see `sd_notify(3)`. Without that variable nothing happens here.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;

use crate::status::servers::argument;
use crate::status::{Health, health};

/// Interval of requests to `/health`.
const PAUSE: Duration = Duration::from_millis(50);

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
            argument(&words, &[option]).or_else(|| env::var(variable).ok())
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
        health(&self.host, &self.port, &self.prefix)
    }
}

fn send(socket: &OsString, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    Ok(())
}
