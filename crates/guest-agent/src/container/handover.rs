//! The channel between the agent and a container's first process before its
//! exec: one packet a message, closed by the exec itself.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire::proto::Error as WireAnswer;

/// Largest packet in bytes. Messages carry text of requests, cut to fit.
const MAX_PACKET: usize = 16 << 10;
/// Longest text of an error that goes through.
const MAX_TEXT: usize = 4 << 10;

/// What the first process says.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// The container stands; the process waits for the start.
    Ready,
    /// It cannot go on.
    Failed(WireAnswer),
}

/// What the agent's end sees.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message and the terminal's master that came with it.
    Message(Message, Option<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The other end is closed: exec has happened, or the process has ended.
    Closed,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Handover(OwnedFd);

impl Handover {
    /// Both ends; the first, the agent's, does not block.
    pub(crate) fn pair() -> Result<(Self, Self), Errno> {
        let (agent, child) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&agent, true)?;
        Ok((Self(agent), Self(child)))
    }

    /// For epoll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Child's end: says something, with a terminal's master beside it.
    pub(crate) fn send(
        &self,
        message: &Message,
        master: Option<BorrowedFd<'_>>,
    ) -> Result<(), Errno> {
        let bytes = match message {
            // No error encodes to this: its field numbers start at 1.
            Message::Ready => vec![0],
            Message::Failed(answer) => encode(answer),
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = master.into_iter().collect();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::INVAL);
        }
        let slices = [IoSlice::new(&bytes)];
        sendmsg(&self.0, &slices, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Child's end: blocks until the agent says go; false if it let go instead.
    pub(crate) fn wait_for_start(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Err(Errno::INTR) => {}
                other => return other == Ok(1),
            }
        }
    }

    /// Agent's end: lets the process go on to its exec.
    pub(crate) fn start(&self) -> Result<(), Errno> {
        rustix::net::send(&self.0, &[1], SendFlags::NOSIGNAL).map(drop)
    }

    /// Agent's end: what has come.
    pub(crate) fn receive(&self) -> Received {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match got {
            Ok(got) => got.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => 0,
        };
        let master = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .next();
        match &bytes[..count] {
            [] => Received::Closed,
            [0] => Received::Message(Message::Ready, master),
            packet => Received::Message(Message::Failed(decode(packet)), None),
        }
    }
}

fn encode(answer: &WireAnswer) -> Vec<u8> {
    let cut = |text: &str| text.chars().take(MAX_TEXT / 4).collect::<String>();
    let short = WireAnswer {
        code: answer.code,
        message: cut(&answer.message),
        field: cut(&answer.field),
        remedy: cut(&answer.remedy),
    };
    // Far below the frame limit, so this cannot fail.
    wire::encode(&short).unwrap_or_default()
}

fn decode(packet: &[u8]) -> WireAnswer {
    let mut decoder = wire::FrameDecoder::default();
    decoder.push(packet);
    match decoder.next_message() {
        Ok(Some(answer)) => answer,
        _ => WireAnswer {
            code: wire::proto::error::Code::Internal.into(),
            message: "the container's first process failed without saying why".to_owned(),
            ..WireAnswer::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_whole_then_the_end_shows() {
        let (agent, child) = Handover::pair().unwrap();
        assert!(matches!(agent.receive(), Received::Nothing));
        let answer = WireAnswer {
            code: 1,
            message: "m".to_owned(),
            field: "f".to_owned(),
            remedy: "r".to_owned(),
        };
        child.send(&Message::Failed(answer.clone()), None).unwrap();
        match agent.receive() {
            Received::Message(Message::Failed(got), None) => assert_eq!(got, answer),
            other => panic!("{other:?}"),
        }
        drop(child);
        assert!(matches!(agent.receive(), Received::Closed));
    }

    #[test]
    fn the_terminal_comes_with_the_ready_message() {
        let (agent, child) = Handover::pair().unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        child.send(&Message::Ready, Some(read.as_fd())).unwrap();
        let got = agent.receive();
        assert!(matches!(got, Received::Message(Message::Ready, Some(_))));
        agent.start().unwrap();
        assert!(child.wait_for_start());
        drop(agent);
        assert!(!child.wait_for_start());
    }

    #[test]
    fn endless_text_is_cut_to_a_packet() {
        let answer = WireAnswer {
            message: "ä".repeat(1 << 20),
            field: "x".repeat(1 << 20),
            ..WireAnswer::default()
        };
        assert!(encode(&answer).len() <= MAX_PACKET);
    }
}
