//! The few messages of rtnetlink(7) that the agent needs, made by hand: a netlink
//! library is larger than the rest of the agent's network code, and the initramfs
//! is unpacked at every boot.

use super::request::{Neighbour, Net, Route};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Length of struct nlmsghdr and of struct ifinfomsg.
const HEADER_LEN: usize = 16;
const LINK_LEN: usize = 16;
/// RTNH_F_ONLINK, RTAX_MTU, IFF_UP of the kernel's headers.
const ON_LINK: u32 = 4;
const METRIC_MTU: u16 = 2;
const INTERFACE_UP: u32 = 1;

/// A network interface.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<[u8; 6]>,
}

/// A socket to the kernel's routing tables.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Netlink, Errno> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is number 0.
            None,
        )?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// All interfaces.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Errno> {
        let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP);
        message.link(0, 0, 0);
        let mut links = Vec::new();
        self.exchange(message, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                links.extend(parse_link(body));
            }
        })?;
        Ok(links)
    }

    /// Gives an interface another name.
    pub(super) fn rename(&mut self, index: u32, name: &str) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        let name = [name.as_bytes(), &[0]].concat();
        message.attribute(libc::IFLA_IFNAME, &name);
        self.call(message)
    }

    /// Moves an interface to another network namespace.
    pub(super) fn give(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        let namespace = namespace.as_raw_fd().to_ne_bytes();
        message.attribute(libc::IFLA_NET_NS_FD, &namespace);
        self.call(message)
    }

    /// Sets the MTU in bytes.
    pub(super) fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, 0, 0);
        message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.call(message)
    }

    /// Brings an interface up.
    pub(super) fn set_up(&mut self, index: u32) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, INTERFACE_UP, INTERFACE_UP);
        self.call(message)
    }

    /// Adds an address; an IPv6 one is used at once, without a search for
    /// others who have it.
    pub(super) fn add_address(&mut self, index: u32, net: Net) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let flags = match net.address {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => u8::try_from(libc::IFA_F_NODAD).unwrap_or(0),
        };
        // struct ifaddrmsg: family, prefix, flags, scope (global), index.
        message.put(&[family(net.address), net.prefix, flags, 0]);
        message.put(&index.to_ne_bytes());
        message.address(libc::IFA_ADDRESS, net.address);
        if let IpAddr::V4(address) = net.address {
            message.address(libc::IFA_LOCAL, net.address);
            if net.prefix < 31 {
                let host = u32::MAX.checked_shr(net.prefix.into()).unwrap_or(0);
                let broadcast = (address.to_bits() | host).to_be_bytes();
                message.attribute(libc::IFA_BROADCAST, &broadcast);
            }
        }
        self.call(message)
    }

    /// Adds a route through an interface.
    pub(super) fn add_route(&mut self, index: u32, route: &Route) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let destination = route.destination;
        let scope = if route.gateway.is_none() && destination.address.is_ipv4() {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        // struct rtmsg: family, lengths of destination and source, TOS, table,
        // protocol, scope, type, flags.
        message.put(&[
            family(destination.address),
            destination.prefix,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            scope,
            libc::RTN_UNICAST,
        ]);
        let on_link = route.on_link && route.gateway.is_some();
        message.put(&if on_link { ON_LINK } else { 0 }.to_ne_bytes());
        if destination.prefix > 0 {
            message.address(libc::RTA_DST, destination.address);
        }
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        if let Some(gateway) = route.gateway {
            message.address(libc::RTA_GATEWAY, gateway);
        }
        if let Some(metric) = route.metric {
            message.attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes());
        }
        if let Some(mtu) = route.mtu {
            let mut metrics = Message::empty();
            metrics.attribute(METRIC_MTU, &mtu.to_ne_bytes());
            message.attribute(libc::RTA_METRICS, &metrics.bytes);
        }
        self.call(message)
    }

    /// Sets a fixed entry of the neighbour table.
    pub(super) fn set_neighbour(&mut self, index: u32, neighbour: &Neighbour) -> Result<(), Errno> {
        let mut message =
            Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        // struct ndmsg: family and padding, index, state, flags, type.
        message.put(&[family(neighbour.address), 0, 0, 0]);
        message.put(&index.to_ne_bytes());
        message.put(&libc::NUD_PERMANENT.to_ne_bytes());
        message.put(&[0, 0]);
        message.address(libc::NDA_DST, neighbour.address);
        message.attribute(libc::NDA_LLADDR, &neighbour.mac);
        self.call(message)
    }

    fn call(&mut self, message: Message) -> Result<(), Errno> {
        self.exchange(message, |_, _| {})
    }

    /// Sends a request and reads answers until the kernel says that was all.
    fn exchange(
        &mut self,
        mut message: Message,
        mut answer: impl FnMut(u16, &[u8]),
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let request = message.finish(sequence);
        // Unconnected, a netlink socket speaks to the kernel.
        send(&self.socket, request, SendFlags::empty())?;
        // A dump comes in pieces of at most this size.
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (len, _) = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            for message in messages(&buffer[..len]) {
                if message.sequence != sequence {
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return status(message.body),
                    _ => answer(message.kind, message.body),
                }
            }
        }
    }
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    // 2 and 10.
    u8::try_from(family).unwrap_or(0)
}

/// The negated errno of an NLMSG_ERROR, 0 for success.
fn status(body: &[u8]) -> Result<(), Errno> {
    match number(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        None => Err(Errno::BADMSG),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A message of the kernel's.
struct Received<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one datagram; what is cut off is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(number(bytes, 0)?).ok()?;
        let message = Received {
            kind: short(bytes, 4)?,
            sequence: number(bytes, 8)?,
            body: bytes.get(HEADER_LEN..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(short(bytes, 0)?);
        let attribute = (short(bytes, 2)?, bytes.get(4..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// struct ifinfomsg: family, type, index, flags, change; then attributes.
fn parse_link(body: &[u8]) -> Option<Link> {
    let index = number(body, 4)?;
    let (mut name, mut mac) = (String::new(), None);
    for (kind, value) in attributes(body.get(LINK_LEN..)?) {
        match kind {
            libc::IFLA_IFNAME => {
                let end = value.iter().position(|&byte| byte == 0);
                let value = &value[..end.unwrap_or(value.len())];
                name = String::from_utf8_lossy(value).into_owned();
            }
            libc::IFLA_ADDRESS => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some(Link { index, name, mac })
}

/// A message being made.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn empty() -> Message {
        Message { bytes: Vec::new() }
    }

    /// A request that the kernel is to acknowledge.
    fn new(kind: u16, flags: i32) -> Message {
        let mut message = Message::empty();
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let flags = u16::try_from(flags).unwrap_or(0);
        // struct nlmsghdr; length and sequence number come last.
        message.put(&[0; 4]);
        message.put(&kind.to_ne_bytes());
        message.put(&flags.to_ne_bytes());
        message.put(&[0; 8]);
        message
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn link(&mut self, index: u32, flags: u32, change: u32) {
        self.put(&[0; 4]);
        self.put(&index.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&change.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Values are short here: names, addresses, numbers.
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.put(&len.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = status(message.body);
                let _ = parse_link(message.body);
            }
            let _ = attributes(&bytes).count();
        }
    }
}
