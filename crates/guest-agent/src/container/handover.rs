//! The channel between the agent and a container's first process before its
//! exec: one packet a message, closed by the exec itself.

use super::user::Identity;
use guest_api::proto::User;
use prost::Message as _;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire::proto::Error as WireAnswer;

/// Largest packet in bytes. Messages carry text of requests, cut to fit, or the
/// numbers of at most [`super::user::MAX_GROUPS`] groups, at most five bytes each.
const MAX_PACKET: usize = 128 << 10;
/// Longest text of an error that goes through.
const MAX_TEXT: usize = 4 << 10;

/// What the first process says.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// The container stands; the process waits for the start. Its program will
    /// run as this user.
    Ready(Identity),
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
            Message::Ready(identity) => encode_identity(identity),
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

    /// Child's end: nothing more is said, as after the exec.
    pub(crate) fn done(&self) {
        // Fails where the agent has let go, which is as good.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
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
            [READY, rest @ ..] => match decode_identity(rest) {
                Some(identity) => Received::Message(Message::Ready(identity), master),
                None => Received::Closed,
            },
            [_, packet @ ..] => Received::Message(Message::Failed(decode(packet)), None),
        }
    }
}

/// First byte of a packet: which message it is.
const READY: u8 = 0;
const FAILED: u8 = 1;

fn encode_identity(identity: &Identity) -> Vec<u8> {
    let user = User {
        name: identity.home.clone(),
        uid: Some(identity.uid),
        gid: Some(identity.gid),
        additional_gids: identity.groups.clone(),
        strict_groups: false,
    };
    let mut packet = vec![READY];
    packet.extend(user.encode_to_vec());
    packet
}

fn decode_identity(packet: &[u8]) -> Option<Identity> {
    let user = User::decode(packet).ok()?;
    Some(Identity {
        uid: user.uid?,
        gid: user.gid?,
        groups: user.additional_gids,
        home: user.name,
    })
}

fn encode(answer: &WireAnswer) -> Vec<u8> {
    let cut = |text: &str| text.chars().take(MAX_TEXT / 4).collect::<String>();
    let short = WireAnswer {
        code: answer.code,
        message: cut(&answer.message),
        field: cut(&answer.field),
        remedy: cut(&answer.remedy),
    };
    let mut packet = vec![FAILED];
    packet.extend(short.encode_to_vec());
    packet
}

fn decode(packet: &[u8]) -> WireAnswer {
    WireAnswer::decode(packet).unwrap_or_else(|_| WireAnswer {
        code: wire::proto::error::Code::Internal.into(),
        message: "the container's first process failed without saying why".to_owned(),
        ..WireAnswer::default()
    })
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
        let identity = Identity {
            uid: 1000,
            gid: 1001,
            groups: (0..u32::try_from(crate::container::user::MAX_GROUPS).unwrap())
                .map(|n| u32::MAX - n)
                .collect(),
            home: "/home/app".to_owned(),
        };
        let ready = Message::Ready(identity.clone());
        child.send(&ready, Some(read.as_fd())).unwrap();
        match agent.receive() {
            Received::Message(Message::Ready(got), Some(_)) => assert_eq!(got, identity),
            other => panic!("{other:?}"),
        }
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
