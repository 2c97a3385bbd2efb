//! Bytes between the host and a TCP connection, each way on its own: bounded
//! memory, nothing read that the other side does not take, and the end of one way
//! leaves the other alone.

use super::Progress;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Pieces copied before other connections get their turn.
const TURNS: usize = 16;
/// How long a pod that reads nothing may keep what a host that is gone has sent.
const STALLED: Duration = Duration::from_secs(10);

/// One way.
#[derive(Debug)]
struct Way {
    state: State,
    /// Read but not written, from `sent` on: at most one piece.
    pending: Vec<u8>,
    sent: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more comes; what is pending still goes.
    Ending,
    Over,
}

/// Which side of a way failed.
enum Failed {
    From,
    To,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Copying {
    host: OwnedFd,
    target: OwnedFd,
    up: Way,
    down: Way,
    /// The host will say no more, also where what it has said is not all read.
    host_ended: bool,
    /// When the pod must have read something; nobody waits for it any more.
    deadline: Option<Instant>,
}

impl Copying {
    /// `came`: what the host has sent already.
    pub(super) fn new(host: OwnedFd, target: OwnedFd, came: Vec<u8>) -> Self {
        Self {
            host,
            target,
            up: Way::new(came),
            down: Way::new(Vec::new()),
            host_ended: false,
            deadline: None,
        }
    }

    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    pub(super) fn target(&self) -> BorrowedFd<'_> {
        self.target.as_fd()
    }

    /// The host says nothing more.
    pub(super) fn host_ended(&mut self) {
        self.host_ended = true;
    }

    /// The host takes nothing more.
    pub(super) fn host_hung_up(&mut self) {
        if self.down.state != State::Over {
            self.down.give_up();
            self.deadline = Some(Instant::now() + STALLED);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Has the pod's connection end by a reset: it has not got all.
    pub(super) fn abort(&self) {
        let _ = sockopt::set_socket_linger(&self.target, Some(Duration::ZERO));
    }

    /// Copies as much as goes without blocking.
    pub(super) fn advance(&mut self, scratch: &mut [u8]) -> Progress {
        for _ in 0..TURNS {
            let moved = self.turn(scratch);
            if self.up.state == State::Over && self.down.state == State::Over {
                return Progress::Over;
            }
            if !moved {
                return Progress::Wait;
            }
        }
        Progress::Again
    }

    /// One piece each way; whether any was moved.
    fn turn(&mut self, scratch: &mut [u8]) -> bool {
        let up = self.up.turn(&self.host, &self.target, scratch);
        let up = up.unwrap_or_else(|failed| {
            match failed {
                Failed::From => {
                    self.up.end();
                    self.host_hung_up();
                }
                // What it has sent before is still there to read.
                Failed::To => self.up.give_up(),
            }
            true
        });
        if up && let Some(deadline) = &mut self.deadline {
            *deadline = Instant::now() + STALLED;
        }
        // A host that has ended its way may be gone altogether: only sending tells.
        if (self.host_ended || self.up.state != State::Open)
            && self.down.state == State::Open
            && send(&self.host, &[], SendFlags::NOSIGNAL).is_err_and(|e| e != Errno::AGAIN)
        {
            self.host_hung_up();
        }
        let down = self.down.turn(&self.target, &self.host, scratch);
        let down = down.unwrap_or_else(|failed| {
            match failed {
                Failed::From => {
                    self.down.end();
                    self.up.give_up();
                }
                Failed::To => self.host_hung_up(),
            }
            true
        });
        up || down
    }
}

impl Way {
    fn new(pending: Vec<u8>) -> Self {
        Self {
            state: State::Open,
            pending,
            sent: 0,
        }
    }

    /// Nothing more comes.
    fn end(&mut self) {
        if self.state == State::Open {
            self.state = State::Ending;
        }
    }

    /// Nobody takes what comes.
    fn give_up(&mut self) {
        self.state = State::Over;
        self.pending = Vec::new();
        self.sent = 0;
    }

    /// Moves one piece; false where that would block, or all is done.
    fn turn(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut [u8]) -> Result<bool, Failed> {
        if self.sent < self.pending.len() {
            let sent = match write(to, &self.pending[self.sent..])? {
                0 => return Ok(false),
                sent => sent,
            };
            self.sent += sent;
            return Ok(true);
        }
        self.pending.clear();
        self.sent = 0;
        match self.state {
            State::Open => {}
            State::Ending => {
                let _ = shutdown(to, Shutdown::Write);
                self.give_up();
                return Ok(true);
            }
            State::Over => return Ok(false),
        }
        let got = loop {
            match recv(from, &mut *scratch, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    self.end();
                    return Ok(true);
                }
                Ok((_, got)) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(Failed::From),
            }
        };
        let sent = write(to, &scratch[..got])?;
        self.pending.extend_from_slice(&scratch[sent..got]);
        Ok(true)
    }
}

/// Writes what goes without blocking.
fn write(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Failed> {
    loop {
        match send(to, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(_) => return Err(Failed::To),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::CHUNK;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    /// Both outer ends and what lies between them.
    fn connection() -> (UnixStream, Copying, TcpStream) {
        let (host, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        target.set_nonblocking(true).unwrap();
        let pod = listener.accept().unwrap().0;
        let copying = Copying::new(theirs.into(), target.into(), b"early ".to_vec());
        (host, copying, pod)
    }

    /// Copies until both ways have ended.
    fn run(mut copying: Copying) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut scratch = vec![0; CHUNK];
            while copying.advance(&mut scratch) != Progress::Over {
                std::thread::yield_now();
            }
        })
    }

    #[test]
    fn each_way_ends_on_its_own() {
        let (mut host, copying, mut pod) = connection();
        let copier = run(copying);
        host.write_all(b"question").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        pod.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early question");
        pod.write_all(b"answer").unwrap();
        drop(pod);
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        copier.join().unwrap();
    }

    #[test]
    fn the_pod_may_end_first() {
        let (mut host, copying, mut pod) = connection();
        let copier = run(copying);
        pod.write_all(b"greeting").unwrap();
        pod.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "greeting");
        host.write_all(b"thanks").unwrap();
        drop(host);
        let mut text = String::new();
        pod.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early thanks");
        copier.join().unwrap();
    }

    #[test]
    fn a_stalled_reader_holds_the_writer_back_and_loses_nothing() {
        const SIZE: usize = 8 << 20;
        let (mut host, mut copying, mut pod) = connection();
        let writer = std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..SIZE).map(byte).collect();
            pod.write_all(&bytes).unwrap();
            // Closed only once all is read: it has not read what came early.
            pod
        });
        let mut scratch = vec![0; CHUNK];
        while host.peek_len() < 100_000 || copying.advance(&mut scratch) != Progress::Wait {
            copying.advance(&mut scratch);
            std::thread::yield_now();
        }
        assert!(copying.down.pending.len() <= CHUNK && !writer.is_finished());
        let copier = run(copying);
        let mut got = vec![0; SIZE];
        host.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(n, b)| *b == byte(n)));
        drop((writer.join().unwrap(), host));
        copier.join().unwrap();
    }

    #[test]
    fn a_host_that_is_gone_ends_what_the_pod_keeps_silent_about() {
        let (host, mut copying, mut pod) = connection();
        drop(host);
        copying.host_hung_up();
        let copier = run(copying);
        let mut text = String::new();
        pod.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early ");
        copier.join().unwrap();
    }

    #[test]
    fn a_pod_that_reads_nothing_of_a_host_that_is_gone_is_reset() {
        let (mut host, mut copying, mut pod) = connection();
        host.set_nonblocking(true).unwrap();
        let mut scratch = vec![0; CHUNK];
        let mut is_full = || host.write(&[7; 4096]).is_err();
        while !is_full() || copying.advance(&mut scratch) == Progress::Again || !is_full() {}
        assert_eq!(copying.deadline(), None);
        // Its end is behind what the pod does not read.
        host.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(copying.advance(&mut scratch), Progress::Wait);
        assert_eq!(copying.deadline(), None);
        copying.host_ended();
        assert_eq!(copying.advance(&mut scratch), Progress::Wait);
        let deadline = copying.deadline().unwrap();
        // Who reads has more time.
        pod.read_exact(&mut vec![0; 1 << 20]).unwrap();
        while copying.deadline() == Some(deadline) {
            copying.advance(&mut scratch);
        }
        copying.abort();
        drop(copying);
        let error = pod.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reset_of_the_pod_ends_both_ways() {
        let (mut host, copying, pod) = connection();
        let linger = rustix::net::sockopt::set_socket_linger;
        linger(&pod, Some(std::time::Duration::ZERO)).unwrap();
        let copier = run(copying);
        drop(pod);
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).unwrap();
        copier.join().unwrap();
    }

    fn byte(n: usize) -> u8 {
        u8::try_from(n % 251).unwrap()
    }

    trait PeekLen {
        fn peek_len(&self) -> usize;
    }

    impl PeekLen for UnixStream {
        fn peek_len(&self) -> usize {
            usize::try_from(rustix::io::ioctl_fionread(self).unwrap()).unwrap()
        }
    }
}
