//! Stands between QEMU's network devices and their vhost-user back ends.
//!
//! QEMU's `-netdev vhost-user` takes only a connection that it makes itself, and
//! enables its rings before it has acknowledged VHOST_USER_F_PROTOCOL_FEATURES,
//! which the vhost-user library takes for a broken peer. So QEMU connects to a
//! socket of ours, and its messages go on behind an acknowledgement. Only control
//! messages pass here, a few at the start and the end of a driver; frames go
//! through shared memory.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use vhost::vhost_user::message::VhostUserVirtioFeatures;

/// Bytes of a message's header: request, flags, size of the body.
const HEADER_LEN: usize = 12;
/// Most bytes in a body, as the library has it.
const MAX_BODY: usize = 4096;
/// Most descriptors beside a message: a memory table's.
const MAX_FDS: usize = 32;
/// The request SET_FEATURES and the flags of version 1.
const SET_FEATURES: u32 = 2;
const VERSION_1: u32 = 1;

/// A relay that waits for QEMU, or serves it. Dropping it ends it once the back
/// end's connection has ended.
pub(super) struct Relay {
    /// The socket's place, without a name.
    place: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Passes on to `back_end` what comes from whoever connects. `path` is there
    /// for a moment.
    pub(super) fn start(
        device: &'static str,
        path: &Path,
        back_end: UnixStream,
    ) -> io::Result<Relay> {
        let (listener, place) = nameless_listener(path)?;
        let serve = move || {
            let ended = listener.accept().and_then(|(qemu, _)| {
                drop(listener);
                run(&qemu, &back_end)
            });
            if let Err(error) = ended {
                tracing::error!(device, %error, "the relay to QEMU failed; the device stopped");
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("vr-{device}"))
            .spawn(serve)?;
        Ok(Relay {
            place,
            thread: Some(thread),
        })
    }

    /// The socket's place (O_PATH) for QEMU, which connects to it by
    /// /proc/self/fd.
    pub(super) fn place(&self) -> io::Result<OwnedFd> {
        self.place.try_clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // In QEMU's stead, if it never came; refused if it did.
        let _ = UnixStream::connect(format!("/proc/self/fd/{}", self.place.as_raw_fd()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listener without a name, and its place, by which one can still connect.
fn nameless_listener(path: &Path) -> io::Result<(UnixListener, OwnedFd)> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty());
    std::fs::remove_file(path)?;
    Ok((listener, place?))
}

/// Passes messages on, both ways, until one side ends.
fn run(qemu: &UnixStream, back_end: &UnixStream) -> io::Result<()> {
    let mut acknowledgement = Vec::new();
    for word in [SET_FEATURES, VERSION_1, 8] {
        acknowledgement.extend(word.to_ne_bytes());
    }
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    acknowledgement.extend(features.to_ne_bytes());
    let mut first = back_end;
    first.write_all(&acknowledgement)?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(qemu.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(back_end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [from_qemu, from_back_end] = fds.map(|fd| !fd.revents().is_empty());
        for (ready, from, to) in [(from_back_end, back_end, qemu), (from_qemu, qemu, back_end)] {
            if ready && !pass(from, to)? {
                return Ok(());
            }
        }
    }
}

/// Passes one message on; whether there was one. A side that breaks off has
/// ended.
fn pass(from: &UnixStream, to: &UnixStream) -> io::Result<bool> {
    let mut message = vec![0; HEADER_LEN];
    let mut fds = Vec::new();
    if !fill(from, &mut message, &mut fds)? {
        return Ok(false);
    }
    let size = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > MAX_BODY {
        let text = format!("a vhost-user message of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    message.resize(HEADER_LEN + size, 0);
    if !fill(from, &mut message[HEADER_LEN..], &mut fds)? {
        return Ok(false);
    }
    match send(to, &message, &fds) {
        Err(e) if is_end(&e) => Ok(false),
        other => other.map(|()| true),
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// Reads until `buffer` is full; whether it is.
fn fill(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut rest = [IoSliceMut::new(&mut buffer[filled..])];
        let got = match recvmsg(from, &mut rest, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(false),
            other => other?.bytes,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got == 0 {
            return Ok(false);
        }
        filled += got;
    }
    Ok(true)
}

/// Sends a whole message; the descriptors go with its first byte.
fn send(mut to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let sent = loop {
        let parts = [IoSlice::new(message)];
        match sendmsg(to, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    to.write_all(&message[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn connect(relay: &Relay) -> UnixStream {
        let place = relay.place().unwrap();
        UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap()
    }

    #[test]
    fn messages_pass_both_ways_behind_an_acknowledgement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (ours, mut back_end) = UnixStream::pair().unwrap();
        let relay = Relay::start("net0", &path, ours).unwrap();
        assert!(!path.exists());
        let mut qemu = connect(&relay);
        let mut acknowledgement = [0; 20];
        back_end.read_exact(&mut acknowledgement).unwrap();
        assert_eq!(acknowledgement[..4], 2u32.to_ne_bytes());
        assert_eq!(acknowledgement[12..], (1u64 << 30).to_ne_bytes());
        // Two messages at once, the second with a descriptor.
        let message = |kind: u8| [&[kind, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0], &b"hi"[..]].concat();
        qemu.write_all(&message(5)).unwrap();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        send(&qemu, &message(6), &[file]).unwrap();
        for (kind, count) in [(5, 0), (6, 1)] {
            let (mut got, mut fds) = ([0; 14], Vec::new());
            assert!(fill(&back_end, &mut got, &mut fds).unwrap());
            assert_eq!((got[0], fds.len()), (kind, count));
        }
        back_end.write_all(&message(7)).unwrap();
        let mut got = [0; 14];
        qemu.read_exact(&mut got).unwrap();
        assert_eq!(got[0], 7);
        drop(back_end);
        drop(relay);
        assert_eq!(qemu.read(&mut got).unwrap(), 0);
    }

    #[test]
    fn a_giant_message_ends_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, mut back_end) = UnixStream::pair().unwrap();
        let relay = Relay::start("net0", &dir.path().join("s"), ours).unwrap();
        let mut qemu = connect(&relay);
        qemu.write_all(&[0xff; HEADER_LEN]).unwrap();
        let mut got = Vec::new();
        back_end.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 20);
    }

    #[test]
    fn a_relay_that_no_qemu_came_to_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, _back_end) = UnixStream::pair().unwrap();
        drop(Relay::start("net0", &dir.path().join("s"), ours).unwrap());
    }
}
