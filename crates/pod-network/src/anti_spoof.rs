//! The program that says which frames of a guest may leave its TAP.
//!
//! A classic BPF program, attached as a tc filter (cls_bpf): tc because frames
//! that it redirects pass no other hook of the pod's namespace (netfilter's
//! egress hook leaves them out), BPF because u32 cannot say "drop" on kernels
//! without act_gact, and because it needs no program loaded through bpf(2).
//!
//! What passes, all with the interface's own source MAC and no VLAN tag:
//!
//! | frame | condition |
//! |-------|-----------|
//! | IPv4 | source is one of the interface's addresses |
//! | ARP | sender's MAC and IP are the interface's; a probe (sender 0.0.0.0) only for its own address |
//! | IPv6 | source is one of its addresses or the link-local address of its MAC |
//! | IPv6 from `::` | neighbour solicitation for its own address (DAD), router solicitation, MLD report |
//! | ICMPv6 neighbour advertisement | target is its own address |
//! | ICMPv6 router advertisement, redirect | never |
//!
//! Neighbour discovery needs hop limit 255; packets of that hop limit with
//! extension headers are dropped, so that it cannot hide behind them. DHCP from
//! 0.0.0.0 does not pass: the addresses are the CNI's to give. An interface to
//! which the CNI gave no address at all (a layer 2 network whose addresses are
//! managed in the pod) is held to its MAC and to untagged frames only.
//!
//! A load past the frame's end ends the program with 0, "no match", which drops.

use crate::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

// Opcodes of classic BPF (linux/bpf_common.h).
const LD_W_ABS: u16 = 0x20;
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const JA: u16 = 0x05;
const JEQ_K: u16 = 0x15;
const RET_K: u16 = 0x06;
/// Loads the "has a VLAN tag" mark that the kernel keeps beside the frame
/// (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT).
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

/// cls_bpf: the frame matches.
const MATCH: u32 = u32::MAX;
/// The most addresses that one program names; far more than any CNI gives, and
/// well under the 4096 instructions that the kernel takes.
pub(crate) const MAX_ADDRESSES: usize = 128;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// The interface has more addresses than a program can name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} addresses on one interface; anti-spoofing takes at most {MAX_ADDRESSES}")]
pub struct TooManyAddresses(usize);

/// A place in the program that is known only later.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    /// Jumps (JA) whose distance is filled in at the end.
    jumps: Vec<(usize, Label)>,
    places: Vec<Option<usize>>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    fn place(&mut self, label: Label) {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(self.code.len());
        }
    }

    fn emit(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) {
        self.code.push(Instruction {
            code,
            jump_true,
            jump_false,
            k,
        });
    }

    fn load(&mut self, size: u16, offset: u32) {
        self.emit(size, 0, 0, offset);
    }

    /// Conditional jumps reach 255 instructions only; this one reaches anywhere.
    fn goto(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JA, 0, 0, 0);
    }

    fn goto_if(&mut self, value: u32, label: Label) {
        self.emit(JEQ_K, 0, 1, value);
        self.goto(label);
    }

    fn goto_unless(&mut self, value: u32, label: Label) {
        self.emit(JEQ_K, 1, 0, value);
        self.goto(label);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in &self.jumps {
            let target = self.places.get(label.0).copied().flatten();
            let distance = target.and_then(|t| u32::try_from(t.checked_sub(at + 1)?).ok());
            if let (Some(instruction), Some(distance)) = (self.code.get_mut(*at), distance) {
                instruction.k = distance;
            }
        }
        self.code
    }
}

// Offsets in an untagged frame.
const MAC_SOURCE: u32 = 6;
const ETHERTYPE: u32 = 12;
const ARP: u32 = 14;
const IPV4_SOURCE: u32 = 14 + 12;
const IPV6_NEXT_HEADER: u32 = 14 + 6;
const IPV6_HOP_LIMIT: u32 = 14 + 7;
const IPV6_SOURCE: u32 = 14 + 8;
const IPV6_DESTINATION: u32 = 14 + 24;
const ICMPV6_TYPE: u32 = 14 + 40;
/// Target address of neighbour solicitations and advertisements.
const ICMPV6_TARGET: u32 = 14 + 40 + 8;

const ICMPV6: u32 = 58;
/// Hop-by-hop, routing, fragment, AH, destination options, mobility, HIP, shim6.
const EXTENSION_HEADERS: [u32; 8] = [0, 43, 44, 51, 60, 135, 139, 140];
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;

/// The program for an interface with this MAC and these addresses.
pub(crate) fn program(
    mac: MacAddr,
    addresses: &[IpAddr],
) -> Result<Vec<Instruction>, TooManyAddresses> {
    if addresses.len() > MAX_ADDRESSES {
        return Err(TooManyAddresses(addresses.len()));
    }
    let v4: Vec<Ipv4Addr> = addresses
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    let mut v6: Vec<Ipv6Addr> = addresses
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        })
        .collect();
    v6.push(mac.link_local());

    let mut asm = Assembler::default();
    let (accept, drop) = (asm.label(), asm.label());
    asm.load(LD_W_ABS, VLAN_TAG_PRESENT);
    asm.goto_unless(0, drop);
    own_mac(&mut asm, MAC_SOURCE, mac, drop);
    asm.load(LD_H_ABS, ETHERTYPE);
    // Tags that the kernel did not take off (a second one, or 802.1ad).
    for tag in [0x8100, 0x88a8, 0x9100] {
        asm.goto_if(tag, drop);
    }
    if addresses.is_empty() {
        asm.goto(accept);
    } else {
        let (ipv4, ipv6, arp) = (asm.label(), asm.label(), asm.label());
        asm.goto_if(0x0800, ipv4);
        asm.goto_if(0x86dd, ipv6);
        asm.goto_if(0x0806, arp);
        asm.goto(drop);
        asm.place(ipv4);
        asm.load(LD_W_ABS, IPV4_SOURCE);
        own_v4(&mut asm, &v4, accept);
        asm.goto(drop);
        asm.place(arp);
        arp_rules(&mut asm, mac, &v4, accept, drop);
        asm.place(ipv6);
        ipv6_rules(&mut asm, &v6, accept, drop);
    }
    asm.place(drop);
    asm.emit(RET_K, 0, 0, 0);
    asm.place(accept);
    asm.emit(RET_K, 0, 0, MATCH);
    Ok(asm.finish())
}

fn own_mac(asm: &mut Assembler, offset: u32, mac: MacAddr, drop: Label) {
    let [a, b, c, d, e, f] = mac.0;
    asm.load(LD_W_ABS, offset);
    asm.goto_unless(u32::from_be_bytes([a, b, c, d]), drop);
    asm.load(LD_H_ABS, offset + 4);
    asm.goto_unless(u32::from(u16::from_be_bytes([e, f])), drop);
}

fn own_v4(asm: &mut Assembler, own: &[Ipv4Addr], matched: Label) {
    for address in own {
        asm.goto_if(u32::from(*address), matched);
    }
}

fn arp_rules(asm: &mut Assembler, mac: MacAddr, own: &[Ipv4Addr], accept: Label, drop: Label) {
    let probe = asm.label();
    // Ethernet, IPv4, lengths 6 and 4.
    asm.load(LD_W_ABS, ARP);
    asm.goto_unless(0x0001_0800, drop);
    asm.load(LD_H_ABS, ARP + 4);
    asm.goto_unless(0x0604, drop);
    own_mac(asm, ARP + 8, mac, drop);
    asm.load(LD_W_ABS, ARP + 14);
    own_v4(asm, own, accept);
    asm.goto_if(0, probe);
    asm.goto(drop);
    asm.place(probe);
    asm.load(LD_H_ABS, ARP + 6);
    asm.goto_unless(1, drop);
    asm.load(LD_W_ABS, ARP + 24);
    own_v4(asm, own, accept);
    asm.goto(drop);
}

/// Goes to `matched` where the 16 bytes at `offset` are one of `own`; falls
/// through otherwise.
fn own_v6(asm: &mut Assembler, offset: u32, own: &[Ipv6Addr], matched: Label) {
    for address in own {
        let next = asm.label();
        for (word, at) in words(*address).into_iter().zip([0, 4, 8, 12]) {
            asm.load(LD_W_ABS, offset + at);
            asm.goto_unless(word, next);
        }
        asm.goto(matched);
        asm.place(next);
    }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let bits = u128::from(address);
    [96, 64, 32, 0].map(|shift| u32::try_from((bits >> shift) & 0xffff_ffff).unwrap_or_default())
}

fn ipv6_rules(asm: &mut Assembler, own: &[Ipv6Addr], accept: Label, drop: Label) {
    let (from_own, from_nobody, icmp, target, mld) = (
        asm.label(),
        asm.label(),
        asm.label(),
        asm.label(),
        asm.label(),
    );
    own_v6(asm, IPV6_SOURCE, own, from_own);
    own_v6(asm, IPV6_SOURCE, &[Ipv6Addr::UNSPECIFIED], from_nobody);
    asm.goto(drop);

    asm.place(from_own);
    asm.load(LD_B_ABS, IPV6_NEXT_HEADER);
    asm.goto_if(ICMPV6, icmp);
    asm.load(LD_B_ABS, IPV6_HOP_LIMIT);
    asm.goto_unless(255, accept);
    asm.load(LD_B_ABS, IPV6_NEXT_HEADER);
    for header in EXTENSION_HEADERS {
        asm.goto_if(header, drop);
    }
    asm.goto(accept);

    asm.place(icmp);
    asm.load(LD_B_ABS, ICMPV6_TYPE);
    asm.goto_if(ROUTER_ADVERTISEMENT, drop);
    asm.goto_if(REDIRECT, drop);
    asm.goto_if(NEIGHBOUR_ADVERTISEMENT, target);
    asm.goto(accept);

    asm.place(from_nobody);
    asm.load(LD_B_ABS, IPV6_NEXT_HEADER);
    asm.goto_if(0, mld);
    asm.goto_unless(ICMPV6, drop);
    asm.load(LD_B_ABS, ICMPV6_TYPE);
    asm.goto_if(ROUTER_SOLICITATION, accept);
    asm.goto_unless(NEIGHBOUR_SOLICITATION, drop);
    asm.goto(target);

    asm.place(target);
    own_v6(asm, ICMPV6_TARGET, own, accept);
    asm.goto(drop);

    // A listener report before there is an address: hop-by-hop (router alert),
    // hop limit 1, to a multicast group.
    asm.place(mld);
    asm.load(LD_B_ABS, IPV6_HOP_LIMIT);
    asm.goto_unless(1, drop);
    asm.load(LD_B_ABS, IPV6_DESTINATION);
    asm.goto_unless(0xff, drop);
    asm.goto(accept);
}

#[cfg(test)]
mod tests;
