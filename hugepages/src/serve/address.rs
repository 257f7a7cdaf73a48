//! The address of the server.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::time::Duration;

use ureq::Agent;

use crate::server_arguments::value;

const DEFAULT_HOST: &str = "127.0.0.1";
const DEFAULT_PORT: u16 = 8080;

/// Host and port of the server, from its arguments and the environment.
#[derive(Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    prefix: String,
    is_plain: bool,
}

impl Address {
    /// Reads the address.
    pub fn of(arguments: &[OsString]) -> Self {
        let host = value(arguments, "--host", "LLAMA_ARG_HOST");
        let port = value(arguments, "--port", "LLAMA_ARG_PORT");
        let prefix = value(arguments, "--api-prefix", "LLAMA_ARG_API_PREFIX");
        let key = value(arguments, "--ssl-key-file", "LLAMA_ARG_SSL_KEY_FILE");
        let host = host.unwrap_or_else(|| DEFAULT_HOST.to_owned());
        Self {
            is_plain: key.is_none() && !is_socket(&host),
            port: port
                .and_then(|port| port.parse().ok())
                .unwrap_or(DEFAULT_PORT),
            prefix: prefix.unwrap_or_default(),
            host,
        }
    }

    /// The port; 0 if the kernel chooses it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether another process listens on this address. `false` if unknown, because the server then reports the error.
    pub fn is_taken(&self) -> bool {
        if self.port == 0 || is_socket(&self.host) {
            return false;
        }
        let Ok(addresses) = (self.host.as_str(), self.port).to_socket_addrs() else {
            return false;
        };
        let mut addresses = addresses;
        addresses.any(|address| {
            TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        })
    }

    /// Whether the server answers. `false` for HTTPS, for a Unix socket, and for a port that the kernel chooses.
    pub fn answers(&self) -> bool {
        if !self.is_plain || self.port == 0 {
            return false;
        }
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(2)));
        let agent: Agent = config.build().into();
        let answer = agent.get(&format!("{self}/health")).call();
        answer.is_ok_and(|answer| answer.status() == 200)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_socket(&self.host) {
            return f.write_str(&self.host);
        }
        // A server on all addresses also listens on this one.
        let host = match self.host.as_str() {
            "0.0.0.0" => DEFAULT_HOST,
            "::" => "[::1]",
            host => host,
        };
        write!(f, "http://{host}:{}{}", self.port, self.prefix)
    }
}

fn is_socket(host: &str) -> bool {
    std::path::Path::new(host)
        .extension()
        .is_some_and(|extension| extension == "sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Address {
        Address::of(&text.split_whitespace().map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn the_address_is_one_that_a_client_on_this_machine_can_use() {
        assert_eq!(
            of("--host 0.0.0.0 --port 81").to_string(),
            "http://127.0.0.1:81"
        );
        assert_eq!(
            of("--host :: --api-prefix /a").to_string(),
            "http://[::1]:8080/a"
        );
    }

    #[test]
    fn a_port_in_use_is_seen_before_anything_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(of(&format!("--port {port}")).is_taken());
        drop(listener);
        assert!(!of(&format!("--port {port}")).is_taken());
    }
}
