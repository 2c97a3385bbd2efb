//! Frames that a guest forges, as the kernel judges them.

use crate::host::{attach, on_host, request};
use pod_network::{Attachment, MacAddr};
use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

/// A UDP datagram in an Ethernet frame behind the TAP's header. Broadcast, so that
/// no address has to be asked for.
struct Frame {
    source_mac: MacAddr,
    source: Ipv4Addr,
    target: SocketAddr,
    vlan: Option<u16>,
    payload: &'static [u8],
}

impl Frame {
    fn send(&self, tap: &OwnedFd) {
        let SocketAddr::V4(target) = self.target else {
            panic!("IPv4 only");
        };
        let mut frame = vec![0; 12];
        frame.extend([0xff; 6]);
        frame.extend(self.source_mac.0);
        if let Some(vlan) = self.vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([0x08, 0]);
        let length = u16::try_from(28 + self.payload.len()).unwrap();
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        header.extend(self.source.octets());
        header.extend(target.ip().octets());
        let sum = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        frame.extend(4000_u16.to_be_bytes());
        frame.extend(target.port().to_be_bytes());
        frame.extend((length - 20).to_be_bytes());
        // No checksum, which UDP over IPv4 allows.
        frame.extend([0, 0]);
        frame.extend(self.payload);
        assert_eq!(rustix::io::write(tap, &frame), Ok(frame.len()));
    }
}

fn host_socket(attachment: &Attachment) -> UdpSocket {
    let gateway = attachment.nics[0]
        .routes
        .iter()
        .filter_map(|route| route.gateway)
        .find(|ip| ip.is_ipv4())
        .expect("a gateway");
    UdpSocket::bind((gateway, 0)).expect("a socket")
}

/// Sends three forged frames and an honest one; what arrives at the host, up to
/// the honest one.
fn arrivals(anti_spoofing: bool) -> Vec<String> {
    let mut arrived = Vec::new();
    on_host(|host| {
        let network = host.with_default_list();
        let mut wish = request("a");
        wish.anti_spoofing = Some(anti_spoofing);
        let (record, attachment) = attach(&network, wish);
        let socket = host_socket(&attachment);
        let nic = &attachment.nics[0];
        let own = match attachment.pod_ips[0] {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => panic!("IPv4 comes first"),
        };
        let honest = |payload| Frame {
            source_mac: nic.mac,
            source: own,
            target: socket.local_addr().unwrap(),
            vlan: None,
            payload,
        };
        let mut other_mac = nic.mac;
        other_mac.0[5] ^= 1;
        let [a, b, c, d] = own.octets();
        let tap = &nic.taps[0];
        Frame {
            source_mac: other_mac,
            ..honest(b"another mac")
        }
        .send(tap);
        Frame {
            source: Ipv4Addr::new(a, b, c, d ^ 128),
            ..honest(b"another ip")
        }
        .send(tap);
        // Priority-tagged: to the receiver the same as untagged.
        Frame {
            vlan: Some(0),
            ..honest(b"tagged")
        }
        .send(tap);
        // Too short to say what they are.
        for length in [14, 20, 40] {
            let mut runt = vec![0; 12 + length];
            runt[18..24].copy_from_slice(&nic.mac.0);
            runt[24..26].copy_from_slice(&[0x08, 0x00]);
            assert_eq!(rustix::io::write(tap, &runt), Ok(12 + length));
        }
        honest(b"honest").send(tap);
        let mut buffer = [0; 100];
        loop {
            let (length, _) = socket.recv_from(&mut buffer).expect("a datagram");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            arrived.push(text.clone());
            if text == "honest" {
                break;
            }
        }
        drop(attachment);
        network.remove(&record).unwrap();
    });
    arrived
}

#[test]
fn forged_frames_are_dropped() {
    assert_eq!(arrivals(true), ["honest"]);
}

#[test]
fn forged_frames_pass_where_that_is_allowed() {
    assert_eq!(
        arrivals(false),
        ["another mac", "another ip", "tagged", "honest"]
    );
}

/// Words that each frame below ends with, by which it is known again.
const MARK: &[u8] = b"frame:";

/// A frame of the guest for everybody, behind the TAP's header; its name comes last.
fn named(source: MacAddr, ethertype: u16, packet: &[u8], name: &str) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame.extend(MARK);
    frame.extend(name.as_bytes());
    frame
}

/// An ARP reply (RFC 826).
fn arp(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(mac.0);
    packet.extend(ip.octets());
    packet.extend([0; 10]);
    packet
}

/// An ICMPv6 message of neighbour discovery about an address (RFC 4861).
fn discovery(source: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
    packet.extend(source.octets());
    packet.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
    packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(target.octets());
    packet
}

#[test]
fn a_guest_announces_no_address_of_another() {
    on_host(|host| {
        let network = host.with_default_list();
        let (record, attachment) = attach(&network, request("a"));
        let nic = &attachment.nics[0];
        let [IpAddr::V4(ip4), IpAddr::V6(ip6)] = attachment.pod_ips[..] else {
            panic!("{:?}", attachment.pod_ips);
        };
        // All frames of the host's interfaces, whoever they are for.
        let everything = RawProtocol::new(u32::from(0x0003_u16.to_be())).unwrap();
        let everything = Some(Protocol::from_raw(everything));
        let seen = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, everything).unwrap();
        let other_mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let (other4, other6) = (
            "10.88.0.200".parse().unwrap(),
            "fd88:5f3e::200".parse().unwrap(),
        );
        let mac = nic.mac;
        let neighbour = |source, kind, target| discovery(source, kind, target);
        for frame in [
            named(mac, 0x0806, &arp(mac, other4), "another ip in arp"),
            named(mac, 0x0806, &arp(other_mac, ip4), "another mac in arp"),
            named(other_mac, 0x0806, &arp(other_mac, ip4), "another mac"),
            named(mac, 0x0806, &arp(mac, ip4), "own arp"),
            named(
                mac,
                0x86dd,
                &neighbour(ip6, 136, other6),
                "another's advertisement",
            ),
            named(mac, 0x86dd, &neighbour(other6, 136, ip6), "another ip"),
            named(
                mac,
                0x86dd,
                &neighbour(ip6, 134, ip6),
                "router advertisement",
            ),
            named(mac, 0x86dd, &neighbour(ip6, 137, ip6), "redirect"),
            named(mac, 0x88cc, &[0; 40], "another protocol"),
            named(mac, 0x86dd, &neighbour(ip6, 136, ip6), "own advertisement"),
        ] {
            assert_eq!(rustix::io::write(&nic.taps[0], &frame), Ok(frame.len()));
        }
        let mut passed = Vec::new();
        let mut buffer = [0; 2000];
        while passed.last().is_none_or(|name| name != "own advertisement") {
            let len = rustix::io::read(&seen, &mut buffer).unwrap();
            let at = buffer[..len]
                .windows(MARK.len())
                .position(|part| part == MARK);
            if let Some(at) = at {
                let name = String::from_utf8_lossy(&buffer[at + MARK.len()..len]).into_owned();
                // The bridge shows it once more.
                if passed.last() != Some(&name) {
                    passed.push(name);
                }
            }
        }
        assert_eq!(passed, ["own arp", "own advertisement"]);
        drop(attachment);
        network.remove(&record).unwrap();
    });
}
