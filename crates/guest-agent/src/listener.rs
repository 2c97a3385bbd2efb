//! The vsock ports, which only the host may connect to.

use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{VsockAddr, bind, getpeername};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socket_with};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The host's address. Processes of the guest itself come from another.
const HOST_CID: u32 = 2;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Listens on `port`.
    pub(crate) fn bind(port: u32) -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::VSOCK,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let address = VsockAddr::new(VMADDR_CID_ANY, port);
        bind(socket.as_raw_fd(), &address).map_err(|e| Errno::from_raw_os_error(e as i32))?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket })
    }

    /// For epoll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next connection of the host, non-blocking; others are closed.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.socket, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(e) => return Err(e),
            };
            // A peer that is gone again has no address.
            let peer = getpeername::<VsockAddr>(socket.as_raw_fd());
            if peer.is_ok_and(|address| address.cid() == HOST_CID) {
                return Ok(Some(socket));
            }
        }
    }
}
