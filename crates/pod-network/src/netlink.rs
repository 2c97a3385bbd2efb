//! Requests to the kernel's rtnetlink, one at a time, on a blocking socket.
//!
//! A socket belongs to the network namespace of the thread that opened it. Used
//! on the short-lived threads that work in a pod's namespace, hence no async.

mod read;

pub(crate) use read::Link;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The netlink socket failed.
    #[error("the netlink socket failed to {step}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the kernel refuses to {request}")]
    Refused {
        /// What was asked.
        request: String,
        /// Its errno.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer is not understood.
    #[error("the kernel's answer to {request:?} is not understood: {reason}")]
    Answer {
        /// What was asked.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no interface of that name.
    #[error("there is no interface {0:?}")]
    NoSuchLink(String),
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

fn socket_error(step: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { step, source }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(socket_error("open"))?;
        socket.bind_auto().map_err(socket_error("bind"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(socket_error("connect"))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for a change; returns when the kernel has acknowledged it.
    pub(crate) fn change(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(request, message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(request, message, NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence += 1;
        let mut out = NetlinkMessage::from(message);
        out.header.flags = NLM_F_REQUEST | flags;
        out.header.sequence_number = self.sequence;
        out.finalize();
        let mut bytes = vec![0; out.buffer_len()];
        out.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(socket_error("send"))?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .map_err(socket_error("receive"))?;
            if self.read_datagram(request, &datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of one datagram; true when the answer is complete.
    fn read_datagram(
        &self,
        request: &str,
        datagram: &[u8],
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<bool, NetlinkError> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let not_understood = |reason: String| NetlinkError::Answer {
                request: request.to_owned(),
                reason,
            };
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| not_understood(e.to_string()))?;
            let length = usize::try_from(message.header.length)
                .map_err(|e| not_understood(e.to_string()))?
                .next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            let refused = |code: i32| NetlinkError::Refused {
                request: request.to_owned(),
                source: io::Error::from_raw_os_error(code.saturating_neg()),
            };
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) => {
                    return error.code.map_or(Ok(true), |code| Err(refused(code.get())));
                }
                NetlinkPayload::Done(done) if done.code < 0 => return Err(refused(done.code)),
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Overrun(_) => return Err(not_understood("overrun".into())),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Brings an interface up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let request = format!("bring interface {index} up");
        self.change(&request, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Brings up the interface of that name.
    pub(crate) fn set_up_by_name(&mut self, name: &str) -> Result<(), NetlinkError> {
        let index = self.link(name)?.index;
        self.set_up(index)
    }

    /// Sets an interface's MTU in bytes.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let request = format!("set the MTU of interface {index} to {mtu}");
        self.change(&request, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Deletes an interface; one that is gone is no error.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let index = match self.link(name) {
            Ok(link) => link.index,
            Err(NetlinkError::NoSuchLink(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = format!("delete interface {name}");
        match self.change(&request, RouteNetlinkMessage::DelLink(message), 0) {
            Err(NetlinkError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}
