//! Those who read a container's output as it comes (attach), beside its log.
//!
//! Each has a socket that takes `LogOutput` frames, and a buffer of bounded size.
//! A reader that is a little slow holds the output up for a moment, so that it
//! misses nothing; one that stalls loses bytes, is told how many, and holds up
//! nobody.

use guest_api::proto::open_stream::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use vm_spec::proto::{LogOutput, log_output::Kind};

/// Bytes that wait for a reader.
const LIMIT: usize = 1 << 20;
/// How long a reader whose buffer is full may hold up a piece of output.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a reader may take nothing once there is no more output.
const FAREWELL: Duration = Duration::from_secs(10);

/// One reader.
#[derive(Debug)]
pub(super) struct Reader {
    socket: OwnedFd,
    streams: Vec<Stream>,
    /// Frames on their way.
    pending: VecDeque<u8>,
    /// Bytes of output since its buffer was full.
    lost: u64,
    gone: bool,
}

impl Reader {
    /// Of `streams`; `socket` is non-blocking.
    pub(super) fn new(socket: OwnedFd, streams: Vec<Stream>) -> Self {
        Self {
            socket,
            streams,
            pending: VecDeque::new(),
            lost: 0,
            gone: false,
        }
    }

    /// For poll: what it waits for.
    fn poll_fd(&self) -> PollFd<'_> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::OUT, !self.pending.is_empty());
        PollFd::from_borrowed_fd(self.socket.as_fd(), wanted)
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.streams.contains(&stream) {
            return;
        }
        if self.lost == 0 {
            self.wait_for_room(bytes.len());
        }
        // One that fell behind starts again with half a buffer.
        let room = if self.lost == 0 { LIMIT } else { LIMIT / 2 };
        if self.pending.len() + bytes.len() > room {
            self.lost += bytes.len() as u64;
            return;
        }
        self.tell_lost();
        self.queue(match stream {
            Stream::Stderr => Kind::Stderr(bytes.to_vec()),
            _ => Kind::Stdout(bytes.to_vec()),
        });
        self.flush();
    }

    fn tell_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            self.queue(Kind::Lost(lost));
        }
    }

    fn queue(&mut self, kind: Kind) {
        // A piece of output is far smaller than a frame may be.
        if let Ok(frame) = wire::encode(&LogOutput { kind: Some(kind) }) {
            self.pending.extend(frame);
        }
    }

    /// Waits until a piece of that size fits: a reader behind a slow network takes
    /// what there is at its own pace, and slows the output to it.
    fn wait_for_room(&mut self, size: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.gone && self.pending.len() + size > LIMIT {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = wait(&mut [self.poll_fd()], Some(left));
            if !matches!(ready, Ok(1..) | Err(Errno::INTR)) {
                return;
            }
            self.flush();
        }
    }

    /// Sends what goes without blocking.
    fn flush(&mut self) {
        while !self.pending.is_empty() && !self.gone {
            let (front, back) = self.pending.as_slices();
            let piece = if front.is_empty() { back } else { front };
            match rustix::net::send(&self.socket, piece, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.gone = true,
            }
        }
    }
}

/// All readers of one container.
#[derive(Debug, Default)]
pub(super) struct Readers(Vec<Reader>);

impl Readers {
    pub(super) fn add(&mut self, newcomers: Vec<Reader>) {
        self.0.extend(newcomers);
    }

    /// For poll, in the order that [`Self::on_polled`] expects.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.0.iter().map(Reader::poll_fd)
    }

    /// What poll said of each.
    pub(super) fn on_polled(&mut self, flags: &[PollFlags]) {
        for (reader, flags) in self.0.iter_mut().zip(flags) {
            if flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                reader.gone = true;
            } else if flags.contains(PollFlags::OUT) {
                reader.flush();
            }
        }
        self.0.retain(|reader| !reader.gone);
    }

    /// Hands a piece of output to those who want it.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        for reader in &mut self.0 {
            reader.push(stream, bytes);
        }
        self.0.retain(|reader| !reader.gone);
    }

    /// There is no more output: sends what waits, until nobody takes any more or
    /// `stop` is readable.
    pub(super) fn finish(mut self, stop: &OwnedFd) {
        for reader in &mut self.0 {
            reader.tell_lost();
            reader.flush();
        }
        loop {
            self.0.retain(|r| !r.gone && !r.pending.is_empty());
            if self.0.is_empty() {
                return;
            }
            let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
            fds.extend(self.poll_fds());
            match wait(&mut fds, Some(FAREWELL)) {
                Ok(1..) => {}
                Err(Errno::INTR) => continue,
                Ok(0) | Err(_) => return,
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            let flags: Vec<PollFlags> = fds[1..].iter().map(PollFd::revents).collect();
            drop(fds);
            self.on_polled(&flags);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// poll(2); no time limit where `limit` is `None`.
pub(super) fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<usize, Errno> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    poll(fds, limit.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn reader(streams: &[Stream]) -> (Reader, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Reader::new(ours.into(), streams.to_vec()), theirs)
    }

    fn next(socket: &mut UnixStream) -> Option<Kind> {
        wire::read_frame::<LogOutput>(socket).unwrap()?.kind
    }

    fn never() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn readers_get_the_streams_they_want() {
        let (both, mut all) = reader(&[Stream::Stdout, Stream::Stderr]);
        let (one, mut errors) = reader(&[Stream::Stderr]);
        let mut readers = Readers::default();
        readers.add(vec![both, one]);
        readers.push(Stream::Stdout, b"out");
        readers.push(Stream::Stderr, b"err");
        readers.finish(&never());
        assert_eq!(next(&mut all), Some(Kind::Stdout(b"out".to_vec())));
        assert_eq!(next(&mut all), Some(Kind::Stderr(b"err".to_vec())));
        assert_eq!(next(&mut all), None);
        assert_eq!(next(&mut errors), Some(Kind::Stderr(b"err".to_vec())));
        assert_eq!(next(&mut errors), None);
    }

    #[test]
    fn stalled_reader_loses_what_its_buffer_does_not_hold_and_is_told() {
        const PIECE: usize = 32 << 10;
        let (stalled, mut socket) = reader(&[Stream::Stdout]);
        let mut readers = Readers::default();
        readers.add(vec![stalled]);
        let pieces = 4 * LIMIT / PIECE;
        for _ in 0..pieces {
            readers.push(Stream::Stdout, &[7; PIECE]);
        }
        let waiting = readers.0[0].pending.len();
        assert!(waiting <= LIMIT + LIMIT / 8, "{waiting}");
        let reading = std::thread::spawn(move || {
            let (mut got, mut lost) = (0, 0);
            while let Some(kind) = next(&mut socket) {
                match kind {
                    Kind::Stdout(bytes) => got += bytes.len(),
                    Kind::Lost(bytes) => lost += bytes,
                    Kind::Stderr(_) => panic!("not printed"),
                }
            }
            (got, usize::try_from(lost).unwrap())
        });
        readers.finish(&never());
        let (got, lost) = reading.join().unwrap();
        assert!(lost > 0);
        assert_eq!(got + lost, pieces * PIECE);
    }

    #[test]
    fn slow_reader_loses_nothing() {
        const PIECE: usize = 32 << 10;
        let (slow, mut socket) = reader(&[Stream::Stdout]);
        let reading = std::thread::spawn(move || {
            let mut bytes = 0;
            while let Some(kind) = next(&mut socket) {
                let Kind::Stdout(piece) = kind else {
                    panic!("{kind:?}");
                };
                bytes += piece.len();
            }
            bytes
        });
        let mut readers = Readers::default();
        readers.add(vec![slow]);
        for _ in 0..8 * LIMIT / PIECE {
            readers.push(Stream::Stdout, &[7; PIECE]);
        }
        readers.finish(&never());
        assert_eq!(reading.join().unwrap(), 8 * LIMIT);
    }

    #[test]
    fn reader_that_is_gone_is_forgotten() {
        let (silent, theirs) = reader(&[Stream::Stdout]);
        let (other, _kept) = reader(&[Stream::Stdout]);
        let mut readers = Readers::default();
        readers.add(vec![silent, other]);
        drop(theirs);
        let mut fds: Vec<_> = readers.poll_fds().collect();
        assert_eq!(wait(&mut fds, Some(Duration::ZERO)), Ok(1));
        let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        readers.on_polled(&flags);
        assert_eq!(readers.len(), 1);
        // What the other end says is of no interest.
        let (chatty, mut theirs) = reader(&[Stream::Stdout]);
        theirs.write_all(b"?").unwrap();
        readers.add(vec![chatty]);
        readers.push(Stream::Stdout, b"x");
        assert_eq!(readers.len(), 2);
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
    }
}
