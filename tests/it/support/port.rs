//! A port for one server. Another test or process does not get the same port.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

pub struct Port {
    pub number: u16,
    /// A bound socket that does not listen. The kernel gives its port to nobody who asks for any port. The server may bind it too,
    /// because both set `SO_REUSEADDR`.
    _socket: OwnedFd,
}

impl Port {
    pub fn free() -> Self {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let reserve = || {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &any)?;
            Ok::<_, rustix::io::Errno>((getsockname(&socket)?, socket))
        };
        let (address, socket) = reserve().expect("a port is free");
        Self {
            number: SocketAddrV4::try_from(address)
                .expect("an IPv4 address")
                .port(),
            _socket: socket,
        }
    }
}
