//! A framed connection from the host: the handshake, requests in, messages out.

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire::proto::Hello;
use wire::{FrameDecoder, WireError};

/// Most bytes that wait for a host that does not read.
const MAX_BACKLOG: usize = 4 << 20;
/// Backlog in bytes beyond which no further request is taken.
const PAUSE_BACKLOG: usize = 256 << 10;

/// A connection that (still) carries frames.
#[derive(Debug)]
pub(crate) struct Framed {
    socket: OwnedFd,
    decoder: FrameDecoder,
    greeted: bool,
    out: Vec<u8>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The peer closed it.
    #[error("the host closed the connection")]
    Closed,
    /// What came is no message, or the wrong version.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] Errno),
    /// The peer does not read.
    #[error("the host does not read its messages")]
    Backlog,
}

impl Framed {
    /// Takes over a non-blocking connection and says hello.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, ConnectionError> {
        let mut framed = Self {
            socket,
            decoder: FrameDecoder::default(),
            greeted: false,
            out: wire::encode(&wire::hello("spherule-init"))?,
        };
        framed.flush()?;
        Ok(framed)
    }

    /// For epoll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes wait to be sent.
    pub(crate) fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Requests are taken.
    pub(crate) fn wants_read(&self) -> bool {
        self.out.len() < PAUSE_BACKLOG
    }

    /// Reads once.
    pub(crate) fn fill(&mut self, scratch: &mut [u8]) -> Result<(), ConnectionError> {
        match rustix::io::read(&self.socket, &mut *scratch) {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(got) => {
                self.decoder.push(&scratch[..got]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The next whole message behind the peer's hello.
    pub(crate) fn next_message<M: prost::Message + Default>(
        &mut self,
    ) -> Result<Option<M>, ConnectionError> {
        if !self.greeted {
            let Some(hello) = self.decoder.next_message::<Hello>()? else {
                return Ok(None);
            };
            wire::check_hello(&hello)?;
            self.greeted = true;
        }
        Ok(self.decoder.next_message()?)
    }

    /// Queues a message and sends what goes at once.
    pub(crate) fn send<M: prost::Message>(&mut self, message: &M) -> Result<(), ConnectionError> {
        self.out.extend_from_slice(&wire::encode(message)?);
        self.flush()?;
        if self.out.len() > MAX_BACKLOG {
            return Err(ConnectionError::Backlog);
        }
        Ok(())
    }

    /// Sends what goes at once.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.out.is_empty() {
            match rustix::net::send(&self.socket, &self.out, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.out.drain(..sent);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub(crate) fn backlog(&self) -> usize {
        self.out.len()
    }

    /// Drops what the peer sends.
    pub(crate) fn discard(&mut self, scratch: &mut [u8]) -> Result<(), ConnectionError> {
        loop {
            match rustix::io::read(&self.socket, &mut *scratch) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn finish(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// The socket and the bytes behind the last message, for a connection that
    /// turns into raw bytes. `None` where frames are still waiting to be sent.
    pub(crate) fn into_raw(self) -> Option<(OwnedFd, Vec<u8>)> {
        self.out
            .is_empty()
            .then(|| (self.socket, self.decoder.into_rest()))
    }
}
