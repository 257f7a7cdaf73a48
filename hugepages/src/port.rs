//! A TCP port for one server. Another process does not get the same port.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

/// A port of the loopback address, reserved until this value is dropped.
#[derive(Debug)]
pub struct Port {
    /// Number of the port.
    pub number: u16,
    /// A bound socket that does not listen. The kernel gives its port to nobody who asks for any port. The server may bind it too,
    /// because both set `SO_REUSEADDR`.
    _socket: OwnedFd,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    ///
    /// The error of the system call that failed, for example if no port is free.
    pub fn reserve() -> io::Result<Self> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let address = SocketAddrV4::try_from(getsockname(&socket)?)?;
        Ok(Self {
            number: address.port(),
            _socket: socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_reserved_port_is_free_for_a_server_and_given_to_nobody_who_asks_for_any() {
        let port = Port::reserve().unwrap();
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let others: Vec<_> = (0..500).map(|_| any()).collect();
        assert!(
            others
                .iter()
                .all(|other| other.local_addr().unwrap().port() != port.number)
        );
        // The standard library sets `SO_REUSEADDR`, as llama-server does.
        TcpListener::bind((Ipv4Addr::LOCALHOST, port.number)).unwrap();
    }
}
