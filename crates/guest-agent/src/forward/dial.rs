//! Connecting to a port of the pod: to its loopback addresses first, then to the
//! others that it has, for what listens there only.

use crate::error::{AgentError, Doing};
use nix::ifaddrs::getifaddrs;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

/// Most addresses that are tried: a pod may give itself any number.
const MAX_ADDRESSES: usize = 32;

/// An attempt that is under way.
#[derive(Debug)]
pub(super) struct Dial {
    socket: OwnedFd,
    rest: Rest,
}

/// What may still be tried.
#[derive(Debug)]
struct Rest {
    port: u16,
    addresses: VecDeque<SocketAddr>,
    /// Why the first of those that did not just refuse failed.
    failure: Option<Errno>,
}

/// How far an attempt has come.
#[derive(Debug)]
pub(super) enum Dialed {
    /// Until the socket is writable, of which the caller has heard before.
    Waits(Dial),
    /// Likewise, but the socket is another: it is not watched yet.
    Begun(Dial),
    Connected(OwnedFd),
    Failed(AgentError),
}

/// Begins to connect to `port`.
pub(super) fn start(port: u16) -> Dialed {
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let mut addresses: VecDeque<_> = loopback
        .map(|address| SocketAddr::new(address, port))
        .into();
    let mut others = own_addresses(port);
    others.sort_by_key(SocketAddr::is_ipv6);
    addresses.extend(others);
    addresses.truncate(MAX_ADDRESSES);
    let rest = Rest {
        port,
        addresses,
        failure: None,
    };
    rest.next()
}

/// The addresses of all interfaces but the loopback's own.
fn own_addresses(port: u16) -> Vec<SocketAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = |a: &nix::sys::socket::SockaddrIn| SocketAddrV4::new(a.ip(), port).into();
        let v6 = |a: &nix::sys::socket::SockaddrIn6| {
            SocketAddrV6::new(a.ip(), port, 0, a.scope_id()).into()
        };
        let address = address.as_sockaddr_in().map(v4);
        address.or_else(|| interface.address?.as_sockaddr_in6().map(v6))
    });
    addresses
        .filter(|address: &SocketAddr| !address.ip().is_loopback())
        .collect()
}

impl Dial {
    /// For epoll.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The socket may be ready.
    pub(super) fn advance(self) -> Dialed {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => match rustix::net::getpeername(&self.socket) {
                Ok(Some(_)) => connected(self.socket),
                Ok(None) | Err(Errno::NOTCONN) => Dialed::Waits(self),
                Err(e) => self.rest.failed(e),
            },
            Ok(Err(e)) | Err(e) => self.rest.failed(e),
        }
    }
}

impl Rest {
    fn failed(mut self, error: Errno) -> Dialed {
        self.note(error);
        self.next()
    }

    /// Keeps what says more than that nobody listens, or that there is no such
    /// address family.
    fn note(&mut self, error: Errno) {
        let usual = matches!(
            error,
            Errno::CONNREFUSED | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL
        );
        if !usual {
            self.failure.get_or_insert(error);
        }
    }

    /// Tries the next addresses until one does not fail at once.
    fn next(mut self) -> Dialed {
        while let Some(address) = self.addresses.pop_front() {
            match begin(address) {
                Ok((socket, true)) => return connected(socket),
                Ok((socket, false)) => return Dialed::Begun(Dial { socket, rest: self }),
                Err(e) => self.note(e),
            }
        }
        let port = self.port;
        Dialed::Failed(match self.failure {
            None => AgentError::Precondition {
                problem: format!(
                    "port {port}: connection refused: nothing in the pod listens there"
                ),
                remedy: "",
            },
            Some(source) => AgentError::System {
                doing: format!("connecting to port {port} of the pod"),
                source,
                remedy: "",
            },
        })
    }
}

/// A socket on its way to `address`; true if it has arrived.
fn begin(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(e) => Err(e),
    }
}

fn connected(socket: OwnedFd) -> Dialed {
    // What comes is in pieces already, as its sender made them.
    match sockopt::set_tcp_nodelay(&socket, true).doing(|| "setting TCP_NODELAY".into()) {
        Ok(()) => Dialed::Connected(socket),
        Err(e) => Dialed::Failed(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    /// Drives an attempt as the event loop does: waits for the sockets that it was told
    /// to watch, and no others. Returns its end and how many there were.
    fn run(mut dialed: Dialed) -> (Dialed, usize) {
        let mut watched = None;
        let mut sockets = 0;
        loop {
            let dial = match dialed {
                Dialed::Begun(dial) => {
                    sockets += 1;
                    watched = Some(dial.socket().as_raw_fd());
                    dial
                }
                Dialed::Waits(dial) => dial,
                end => return (end, sockets),
            };
            assert_eq!(Some(dial.socket().as_raw_fd()), watched, "not watched");
            let socket = PollFd::new(dial.socket(), PollFlags::OUT);
            poll(&mut [socket], None).unwrap();
            dialed = dial.advance();
        }
    }

    #[test]
    fn next_address_is_begun_where_one_refuses_later() {
        // Bound, so that nobody else has the port, but deaf.
        let bound = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let bound = bound.and_then(|s| rustix::net::bind(&s, &any).map(|()| s));
        let address = rustix::net::getsockname(bound.unwrap()).unwrap();
        let port = SocketAddr::try_from(address).unwrap().port();
        let (end, sockets) = run(start(port));
        assert!(matches!(end, Dialed::Failed(_)), "{end:?}");
        // The kernel answers for the loopback after `connect` has returned.
        assert!(sockets > 1, "{sockets}");
    }

    #[test]
    fn listener_of_ipv6_alone_is_found() {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let (end, _) = run(start(listener.local_addr().unwrap().port()));
        assert!(matches!(end, Dialed::Connected(_)), "{end:?}");
    }
}
