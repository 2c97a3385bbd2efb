//! The program is run by a small interpreter, and by the kernel in
//! `tests/network/spoofing.rs`.

use super::*;
use proptest::prelude::*;

const MAC: MacAddr = MacAddr([0x02, 0x42, 0x0a, 0x00, 0x00, 0x05]);
const OTHER: MacAddr = MacAddr([0x02, 0x42, 0x0a, 0x00, 0x00, 0x06]);

fn own() -> Vec<IpAddr> {
    ["10.0.0.5", "10.0.0.15", "fd00::5"]
        .map(|ip| ip.parse().unwrap())
        .to_vec()
}

/// Runs a program on a frame as the kernel would; whether the frame matches.
fn run(program: &[Instruction], frame: &[u8], tagged: bool) -> bool {
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let i = program[at];
        at += 1;
        match i.code {
            LD_W_ABS if i.k == VLAN_TAG_PRESENT => accumulator = tagged.into(),
            LD_W_ABS | LD_H_ABS | LD_B_ABS => {
                let size = match i.code {
                    LD_W_ABS => 4,
                    LD_H_ABS => 2,
                    _ => 1,
                };
                let start = i.k as usize;
                let Some(bytes) = frame.get(start..start + size) else {
                    return false;
                };
                accumulator = bytes.iter().fold(0, |a, b| a << 8 | u32::from(*b));
            }
            JA => at += i.k as usize,
            JEQ_K if accumulator == i.k => at += usize::from(i.jump_true),
            JEQ_K => at += usize::from(i.jump_false),
            RET_K => return i.k == MATCH,
            other => panic!("opcode {other:#x}"),
        }
    }
}

fn passes(frame: &[u8]) -> bool {
    run(&program(MAC, &own()).unwrap(), frame, false)
}

fn ethernet(source: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn v4(source: &str) -> Vec<u8> {
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
    ethernet(MAC, 0x0800, &packet)
}

fn arp(operation: u8, sender_mac: MacAddr, sender: &str, target: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender_mac.0);
    packet.extend(sender.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend([0; 6]);
    packet.extend(target.parse::<Ipv4Addr>().unwrap().octets());
    ethernet(MAC, 0x0806, &packet)
}

struct V6<'a> {
    source: &'a str,
    destination: &'a str,
    next_header: u8,
    hop_limit: u8,
    payload: Vec<u8>,
}

impl V6<'_> {
    fn frame(&self) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, self.next_header, self.hop_limit];
        packet.extend(self.source.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(self.destination.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(&self.payload);
        ethernet(MAC, 0x86dd, &packet)
    }
}

fn icmp(source: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    payload.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    V6 {
        source,
        destination: "ff02::1",
        next_header: 58,
        hop_limit: 255,
        payload,
    }
    .frame()
}

fn udp6(source: &str, next_header: u8, hop_limit: u8) -> Vec<u8> {
    V6 {
        source,
        destination: "ff02::16",
        next_header,
        hop_limit,
        payload: vec![0; 24],
    }
    .frame()
}

const LINK_LOCAL: &str = "fe80::42:aff:fe00:5";

#[test]
fn ipv4_passes_from_own_addresses_only() {
    assert!(passes(&v4("10.0.0.5")));
    assert!(passes(&v4("10.0.0.15")));
    for other in ["10.0.0.6", "0.0.0.0", "255.255.255.255", "127.0.0.1"] {
        assert!(!passes(&v4(other)), "{other}");
    }
}

#[test]
fn another_mac_never_passes() {
    let mut frame = v4("10.0.0.5");
    frame[6..12].copy_from_slice(&OTHER.0);
    assert!(!passes(&frame));
    // Differs in the two bytes that are looked at apart.
    frame[6..12].copy_from_slice(&MAC.0);
    frame[10] ^= 1;
    assert!(!passes(&frame));
}

#[test]
fn tagged_frames_never_pass() {
    let program = program(MAC, &own()).unwrap();
    assert!(run(&program, &v4("10.0.0.5"), false));
    assert!(!run(&program, &v4("10.0.0.5"), true));
    for tag in [0x8100, 0x88a8, 0x9100] {
        assert!(!passes(&ethernet(MAC, tag, &[0; 60])));
    }
}

#[test]
fn other_protocols_do_not_pass() {
    for ethertype in [0x88cc, 0x8847, 0x0026, 0x8035] {
        assert!(
            !passes(&ethernet(MAC, ethertype, &[0; 60])),
            "{ethertype:#x}"
        );
    }
}

#[test]
fn arp_passes_with_own_sender_only() {
    assert!(passes(&arp(1, MAC, "10.0.0.5", "10.0.0.1")));
    assert!(passes(&arp(2, MAC, "10.0.0.15", "10.0.0.1")));
    assert!(!passes(&arp(2, MAC, "10.0.0.1", "10.0.0.9")));
    assert!(!passes(&arp(2, OTHER, "10.0.0.5", "10.0.0.9")));
}

#[test]
fn arp_probe_passes_for_own_address_only() {
    assert!(passes(&arp(1, MAC, "0.0.0.0", "10.0.0.5")));
    assert!(!passes(&arp(1, MAC, "0.0.0.0", "10.0.0.6")));
    assert!(!passes(&arp(2, MAC, "0.0.0.0", "10.0.0.5")));
}

#[test]
fn arp_of_another_shape_does_not_pass() {
    let mut frame = arp(1, MAC, "10.0.0.5", "10.0.0.1");
    frame[18] = 8;
    assert!(!passes(&frame));
    let mut frame = arp(1, MAC, "10.0.0.5", "10.0.0.1");
    frame[15] = 6;
    assert!(!passes(&frame));
}

#[test]
fn ipv6_passes_from_own_and_link_local_address_only() {
    assert_eq!(MAC.link_local().to_string(), LINK_LOCAL);
    assert!(passes(&udp6("fd00::5", 17, 64)));
    assert!(passes(&udp6(LINK_LOCAL, 17, 64)));
    for other in ["fd00::6", "fe80::1", "::1", "fd00::1:0:5"] {
        assert!(!passes(&udp6(other, 17, 64)), "{other}");
    }
}

#[test]
fn neighbour_advertisements_pass_for_own_targets_only() {
    assert!(passes(&icmp("fd00::5", 136, "fd00::5")));
    assert!(passes(&icmp(LINK_LOCAL, 136, LINK_LOCAL)));
    assert!(!passes(&icmp("fd00::5", 136, "fd00::1")));
}

#[test]
fn router_advertisements_and_redirects_never_pass() {
    assert!(!passes(&icmp(LINK_LOCAL, 134, "::")));
    assert!(!passes(&icmp(LINK_LOCAL, 137, "fd00::5")));
    assert!(passes(&icmp("fd00::5", 128, "::")));
}

#[test]
fn neighbour_discovery_cannot_hide_behind_extension_headers() {
    for header in [0, 43, 44, 51, 60] {
        assert!(!passes(&udp6("fd00::5", header, 255)), "{header}");
        assert!(passes(&udp6("fd00::5", header, 64)), "{header}");
    }
    assert!(passes(&udp6("fd00::5", 17, 255)));
}

#[test]
fn without_an_address_only_duplicate_detection_and_reports_pass() {
    assert!(passes(&icmp("::", 135, "fd00::5")));
    assert!(passes(&icmp("::", 135, LINK_LOCAL)));
    assert!(!passes(&icmp("::", 135, "fd00::6")));
    assert!(passes(&icmp("::", 133, "::")));
    assert!(!passes(&icmp("::", 136, "fd00::5")));
    assert!(passes(&udp6("::", 0, 1)));
    assert!(!passes(&udp6("::", 0, 64)));
    assert!(!passes(&udp6("::", 17, 64)));
}

#[test]
fn without_addresses_the_mac_alone_counts() {
    let program = program(MAC, &[]).unwrap();
    assert!(run(&program, &v4("192.0.2.1"), false));
    assert!(run(&program, &arp(1, MAC, "192.0.2.1", "192.0.2.2"), false));
    assert!(!run(&program, &v4("192.0.2.1"), true));
    let mut frame = v4("192.0.2.1");
    frame[11] ^= 1;
    assert!(!run(&program, &frame, false));
}

#[test]
fn the_largest_program_fits_the_kernel() {
    let all_v6: Vec<IpAddr> = (0..128_u32)
        .map(|i| IpAddr::V6(Ipv6Addr::from(u128::from(i) | 0xfd << 120)))
        .collect();
    let program = program(MAC, &all_v6).unwrap();
    // BPF_MAXINSNS
    assert!(program.len() <= 4096, "{}", program.len());
    assert!(run(&program, &udp6("fd00::7f", 17, 64), false));
    assert!(run(&program, &icmp("fd00::7f", 136, "fd00::7e"), false));
    let more = vec![IpAddr::V4(Ipv4Addr::LOCALHOST); 129];
    assert_eq!(super::program(MAC, &more), Err(TooManyAddresses(129)));
}

proptest! {
    /// The kernel refuses a program with a jump out of it; and whatever the
    /// frame, nothing with a foreign MAC or IPv4 source passes.
    #[test]
    fn any_frame_ends_the_program(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0..4) {
        if frame.len() > 14 {
            frame[6..12].copy_from_slice(&MAC.0);
            let ethertype = [0x0800_u16, 0x86dd, 0x0806, 0x1234][usize::try_from(kind).unwrap()];
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
        let passed = passes(&frame);
        if passed && kind == 0 {
            prop_assert!([[10, 0, 0, 5], [10, 0, 0, 15]].iter().any(|own| own == &frame[26..30]));
        }
        prop_assert!(!(passed && kind == 3));
    }
}
