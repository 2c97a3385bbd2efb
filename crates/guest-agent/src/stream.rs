//! Containers' standard streams on their way to and from the host: one reader or
//! writer each, bounded memory, and nothing read from a pipe that the host does
//! not take.
//!
//! What a host may rely on: output waits in the pipe until it is asked for, also
//! after the container's end, until the container is removed. After a connection
//! broke, the stream may be opened again and goes on; bytes that were handed to
//! the broken connection may be lost. Stdin has any number of connections, each with
//! a copy of its descriptor; the end of one that does not keep it open closes it
//! (not a terminal's).

use guest_api::proto::open_stream::Stream;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes copied at once, and most that a link keeps. Below 32 KiB the kernel's
/// vsock makes one piece of it; larger packets are scattered over many
/// descriptors, which not every device takes.
pub(crate) const CHUNK: usize = 28 << 10;
/// Chunks copied before other work gets its turn.
const TURNS: usize = 16;

/// One of a container's streams.
#[derive(Debug)]
pub(crate) enum Slot {
    /// The container has no such stream.
    Absent,
    /// Its stdin.
    Input(OwnedFd),
    /// Nobody is connected; the bytes were read but not taken by an earlier
    /// reader.
    Idle(OwnedFd, Vec<u8>),
    /// A connection has it.
    Open,
    /// All was sent, or the host has closed it.
    Ended,
}

/// A container's streams.
#[derive(Debug)]
pub(crate) struct Slots {
    stdin: Slot,
    stdout: Slot,
    stderr: Slot,
}

impl Slots {
    /// The agent's ends of a container's streams.
    pub(crate) fn new(
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Self {
        let slot = |fd: Option<OwnedFd>| fd.map_or(Slot::Absent, |fd| Slot::Idle(fd, Vec::new()));
        Self {
            stdin: stdin.map_or(Slot::Absent, Slot::Input),
            stdout: slot(stdout),
            stderr: slot(stderr),
        }
    }

    /// One of them; `None` for no stream's number.
    pub(crate) fn get_mut(&mut self, stream: Stream) -> Option<&mut Slot> {
        match stream {
            Stream::Unspecified => None,
            Stream::Stdin => Some(&mut self.stdin),
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
        }
    }
}

/// What a link waits for, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// The container's end: readable (output), writable (input).
    WaitContainer,
    /// The connection: writable (output), readable (input).
    WaitConnection,
    /// There is more to do, but others should have their turn.
    Again,
    /// The stream is over.
    Ended,
    /// The connection is of no use any more; the stream may be opened again.
    PeerGone,
}

/// A stream of a container and the connection that has it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) container_id: String,
    pub(crate) stream: Stream,
    connection: OwnedFd,
    container: OwnedFd,
    /// Bytes on their way, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    /// The host will send nothing more (on an output stream it never does).
    half_closed: bool,
    /// The container's stdin outlives this link.
    pub(crate) keep_open: bool,
    /// No process can write to the container's end any more.
    pub(crate) is_final: bool,
}

impl Link {
    /// `pending`: bytes that came with the connection (input) or were left by an
    /// earlier reader (output).
    pub(crate) fn new(
        container_id: String,
        stream: Stream,
        connection: OwnedFd,
        container: OwnedFd,
        pending: Vec<u8>,
    ) -> Self {
        Self {
            container_id,
            stream,
            connection,
            container,
            pending,
            sent: 0,
            half_closed: false,
            keep_open: false,
            is_final: false,
        }
    }

    /// Bytes go to the container.
    pub(crate) fn is_input(&self) -> bool {
        self.stream == Stream::Stdin
    }

    /// For epoll.
    pub(crate) fn connection_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// For epoll.
    pub(crate) fn container_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }

    /// Whether the host may still be heard on the connection.
    pub(crate) fn listens(&self) -> bool {
        !self.half_closed
    }

    /// Gives back the container's end and what was not taken.
    pub(crate) fn into_idle(mut self) -> Slot {
        self.pending.drain(..self.sent);
        Slot::Idle(self.container, self.pending)
    }

    /// Tells the host that nothing more comes.
    pub(crate) fn finish(&self) {
        let _ = rustix::net::shutdown(&self.connection, rustix::net::Shutdown::Write);
    }

    /// Looks after an output stream's connection: is the host still there?
    /// `hung_up`: epoll said so.
    pub(crate) fn check_peer(&mut self, hung_up: bool, scratch: &mut [u8]) -> bool {
        if hung_up {
            return false;
        }
        loop {
            match rustix::io::read(&self.connection, &mut *scratch) {
                // Nobody may write here; what comes is dropped.
                Ok(1..) | Err(Errno::INTR) => {}
                Ok(0) => {
                    self.half_closed = true;
                    // An empty message tells a closed connection from one whose
                    // host only will not send anything.
                    return rustix::net::send(&self.connection, &[], SendFlags::NOSIGNAL).is_ok();
                }
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Copies as much as goes without blocking.
    pub(crate) fn pump(&mut self, scratch: &mut [u8]) -> Pumped {
        for _ in 0..TURNS {
            let turn = if self.is_input() {
                self.pump_input(scratch)
            } else {
                self.pump_output(scratch)
            };
            if let Some(pumped) = turn {
                return pumped;
            }
        }
        Pumped::Again
    }

    /// One turn; `None` to go on.
    fn pump_output(&mut self, scratch: &mut [u8]) -> Option<Pumped> {
        if self.sent < self.pending.len() {
            match send(&self.connection, &self.pending[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Some(Pumped::WaitConnection),
                Err(Errno::INTR) => {}
                Err(_) => return Some(Pumped::PeerGone),
            }
            return None;
        }
        self.pending.clear();
        self.sent = 0;
        let got = match rustix::io::read(&self.container, &mut *scratch) {
            // A terminal nobody has open any more says EIO.
            Ok(0) | Err(Errno::IO) => return Some(Pumped::Ended),
            Ok(got) => got,
            Err(Errno::AGAIN) if self.is_final => return Some(Pumped::Ended),
            Err(Errno::AGAIN) => return Some(Pumped::WaitContainer),
            Err(Errno::INTR) => return None,
            Err(_) => return Some(Pumped::Ended),
        };
        match send(&self.connection, &scratch[..got]) {
            Ok(sent) => self.pending.extend_from_slice(&scratch[sent..got]),
            Err(Errno::AGAIN | Errno::INTR) => self.pending.extend_from_slice(&scratch[..got]),
            Err(_) => {
                self.pending.extend_from_slice(&scratch[..got]);
                return Some(Pumped::PeerGone);
            }
        }
        None
    }

    fn pump_input(&mut self, scratch: &mut [u8]) -> Option<Pumped> {
        if self.sent < self.pending.len() {
            match rustix::io::write(&self.container, &self.pending[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Some(Pumped::WaitContainer),
                Err(Errno::INTR) => {}
                // The container has closed its stdin.
                Err(_) => return Some(Pumped::Ended),
            }
            return None;
        }
        self.pending.clear();
        self.sent = 0;
        match rustix::io::read(&self.connection, &mut *scratch) {
            Ok(0) => Some(Pumped::Ended),
            Ok(got) => {
                self.pending.extend_from_slice(&scratch[..got]);
                None
            }
            Err(Errno::AGAIN) => Some(Pumped::WaitConnection),
            Err(Errno::INTR) => None,
            Err(_) => Some(Pumped::PeerGone),
        }
    }
}

fn send(connection: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(connection, bytes, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    struct Output {
        link: Link,
        host: UnixStream,
        container: std::fs::File,
    }

    fn sockets() -> (OwnedFd, UnixStream) {
        let (agent, host) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::io::ioctl_fionbio(&agent, true).unwrap();
        (agent, UnixStream::from(host))
    }

    fn output() -> Output {
        let (connection, host) = sockets();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        Output {
            link: Link::new("c".into(), Stream::Stdout, connection, read, Vec::new()),
            host,
            container: write.into(),
        }
    }

    #[test]
    fn output_arrives_and_its_end_too() {
        let mut scratch = vec![0; CHUNK];
        let mut o = output();
        assert_eq!(o.link.pump(&mut scratch), Pumped::WaitContainer);
        o.container.write_all(b"hello").unwrap();
        assert_eq!(o.link.pump(&mut scratch), Pumped::WaitContainer);
        drop(o.container);
        assert_eq!(o.link.pump(&mut scratch), Pumped::Ended);
        o.link.finish();
        let mut text = String::new();
        o.host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_pipe_held_open_ends_once_no_process_is_left() {
        let mut scratch = vec![0; CHUNK];
        let mut o = output();
        o.container.write_all(b"last words").unwrap();
        o.link.is_final = true;
        assert_eq!(o.link.pump(&mut scratch), Pumped::Ended);
        let mut got = [0; 10];
        o.host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"last words");
    }

    #[test]
    fn a_slow_host_holds_the_container_back_and_loses_nothing() {
        let mut scratch = vec![0; CHUNK];
        let mut o = output();
        rustix::io::ioctl_fionbio(&o.container, true).unwrap();
        let (mut written, mut blocked) = (0u64, false);
        // Bounded buffers: some write must fail long before 64 MiB.
        for n in 0..1024u64 {
            let block = vec![u8::try_from(n % 251).unwrap(); CHUNK];
            match o.container.write(&block) {
                Ok(wrote) => written += wrote as u64,
                Err(_) => {
                    blocked = true;
                    break;
                }
            }
            o.link.pump(&mut scratch);
        }
        assert!(blocked && o.link.pending.len() <= CHUNK);
        drop(o.container);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            o.host.read_to_end(&mut all).unwrap();
            all.len() as u64
        });
        while o.link.pump(&mut scratch) != Pumped::Ended {
            std::thread::yield_now();
        }
        o.link.finish();
        assert_eq!(reader.join().unwrap(), written);
    }

    #[test]
    fn a_lost_reader_leaves_the_rest_for_the_next() {
        let mut scratch = vec![0; CHUNK];
        let mut o = output();
        o.container.write_all(b"kept").unwrap();
        drop(o.host);
        assert_eq!(o.link.pump(&mut scratch), Pumped::PeerGone);
        let Slot::Idle(fd, rest) = o.link.into_idle() else {
            panic!("not idle");
        };
        let (connection, mut host) = sockets();
        let mut link = Link::new("c".into(), Stream::Stdout, connection, fd, rest);
        assert_eq!(link.pump(&mut scratch), Pumped::WaitContainer);
        let mut got = [0; 4];
        host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"kept");
    }

    #[test]
    fn input_reaches_the_container_and_ends_with_the_host() {
        let mut scratch = vec![0; CHUNK];
        let (connection, mut host) = sockets();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let first = b"came with ".to_vec();
        let mut link = Link::new("c".into(), Stream::Stdin, connection, write, first);
        assert_eq!(link.pump(&mut scratch), Pumped::WaitConnection);
        host.write_all(b"the connection").unwrap();
        drop(host);
        assert_eq!(link.pump(&mut scratch), Pumped::Ended);
        drop(link);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "came with the connection");
    }

    #[test]
    fn a_container_that_closed_its_stdin_ends_the_link() {
        let mut scratch = vec![0; CHUNK];
        let (connection, mut host) = sockets();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(read);
        let mut link = Link::new("c".into(), Stream::Stdin, connection, write, Vec::new());
        host.write_all(b"x").unwrap();
        assert_eq!(link.pump(&mut scratch), Pumped::Ended);
    }
}
