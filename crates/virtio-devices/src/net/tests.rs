//! The device against drivers that obey, are short of buffers, or lie.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

use super::counters::{NetCounters, NetHandle};
use super::device::{Net, NetSettings};
use super::header::{HEADER_LEN, MAX_PACKET};
use super::tap::{NetError, Tap};
use crate::testing::{Buffer, Harness};
use crate::{VirtQueue, VirtioDevice};
use proptest::prelude::*;
use std::os::fd::OwnedFd;
use std::time::Duration;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_queue::QueueT;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MEMORY_MIB: usize = 8;
const RX: usize = 0;
const TX: u16 = 1;

fn settings() -> NetSettings {
    NetSettings {
        name: "net0",
        mac: MAC,
        mtu: 1500,
        anti_spoof: true,
    }
}

/// The host's side of the link.
struct Host {
    peers: Vec<OwnedFd>,
    handle: NetHandle,
}

impl Host {
    fn send(&self, frame: &[u8]) {
        let packet = [&[0; HEADER_LEN], frame].concat();
        rustix::io::write(&self.peers[0], &packet).expect("room");
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; MAX_PACKET + 1];
        let len = rustix::io::read(&self.peers[0], &mut packet[..]).ok()?;
        packet.truncate(len);
        Some(packet.split_off(HEADER_LEN))
    }

    fn counters(&self) -> NetCounters {
        self.handle.counters()
    }
}

fn device(pairs: usize) -> (Net, Host) {
    let mut taps: Vec<Tap> = (0..pairs).map(|_| Tap::stand_in()).collect();
    let peers = taps
        .iter_mut()
        .map(|tap| {
            let peer = tap.peer.as_ref().expect("a stand-in");
            peer.try_clone().expect("a descriptor")
        })
        .collect();
    let (net, handle) = Net::with_taps(settings(), taps).expect("a device");
    (net, Host { peers, handle })
}

fn harness() -> (Harness<Net>, Host) {
    let (net, host) = device(1);
    (Harness::new(net, 64, MEMORY_MIB), host)
}

/// A harness whose driver does without some features.
fn harness_without(features: &[u32]) -> (Harness<Net>, Host) {
    let (net, host) = device(1);
    let without = features.iter().fold(0, |bits, feature| bits | 1 << feature);
    let taken = net.features() & !without;
    (Harness::with_features(net, 64, MEMORY_MIB, taken), host)
}

fn frame(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&source);
    frame
}

/// The guest sends header and frame in one chain.
fn transmit(harness: &mut Harness<Net>, header: &[u8], frame: &[u8]) {
    let (first, second) = (harness.store(header), harness.store(frame));
    harness.rings[usize::from(TX)]
        .push(&[
            Buffer::readable(first, header.len() as u32),
            Buffer::readable(second, frame.len() as u32),
        ])
        .expect("room");
}

/// The guest offers receive buffers of these sizes; their addresses.
fn offer(harness: &mut Harness<Net>, sizes: &[u32]) -> Vec<u64> {
    sizes
        .iter()
        .map(|&size| {
            let addr = harness.allocate(size.max(1));
            harness.rings[RX]
                .push(&[Buffer::writable(addr, size)])
                .expect("room");
            addr
        })
        .collect()
}

fn used(harness: &mut Harness<Net>, ring: usize) -> Vec<u32> {
    std::iter::from_fn(|| harness.rings[ring].pop_used())
        .map(|(_, len)| len)
        .collect()
}

#[test]
fn a_frame_goes_to_the_host_as_it_is() {
    let (mut harness, host) = harness();
    let sent = frame(MAC, 1514);
    transmit(&mut harness, &[0; HEADER_LEN], &sent);
    harness.run(TX).expect("the device works");
    assert_eq!(host.receive(), Some(sent));
    assert_eq!(used(&mut harness, TX.into()), [0]);
    let counters = host.counters();
    assert_eq!((counters.tx_frames, counters.tx_bytes), (1, 1514));
    assert_eq!(counters.tx_dropped, 0);
}

#[test]
fn frames_that_are_none_or_lie_are_dropped_and_answered() {
    let (mut harness, host) = harness();
    let good = frame(MAC, 60);
    let spoofed = frame([2, 0, 0, 0, 0, 9], 60);
    transmit(&mut harness, &[0; HEADER_LEN], &good[..13]);
    transmit(&mut harness, &[0; 4], &[]);
    transmit(&mut harness, &[0; HEADER_LEN], &spoofed);
    transmit(&mut harness, &[0; HEADER_LEN], &vec![2; MAX_PACKET]);
    // A segment of UDP, which was not offered.
    transmit(&mut harness, &[1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &good);
    transmit(&mut harness, &[0; HEADER_LEN], &good);
    harness.run(TX).expect("the device works");
    assert_eq!(host.receive(), Some(good));
    assert_eq!(host.receive(), None);
    assert_eq!(used(&mut harness, TX.into()), [0; 6]);
    assert_eq!(host.counters().tx_dropped, 5);
}

#[test]
fn other_addresses_may_send_where_spoofing_is_allowed() {
    let tap = Tap::stand_in();
    let peer = tap.peer.as_ref().expect("a stand-in");
    let peers = vec![peer.try_clone().expect("a descriptor")];
    let settings = NetSettings {
        anti_spoof: false,
        ..settings()
    };
    let (net, handle) = Net::with_taps(settings, vec![tap]).expect("a device");
    let host = Host { peers, handle };
    let mut harness = Harness::new(net, 64, MEMORY_MIB);
    let other = frame([6; 6], 60);
    transmit(&mut harness, &[0; HEADER_LEN], &other);
    harness.run(TX).expect("the device works");
    assert_eq!(host.receive(), Some(other));
}

#[test]
fn a_frame_in_a_thousand_pieces_is_one_frame() {
    let (mut harness, host) = harness();
    let sent = frame(MAC, 1100);
    let packet = [&[0; HEADER_LEN], &sent[..]].concat();
    let at = harness.store(&packet);
    let table = harness.allocate(64 << 10);
    let buffers: Vec<Buffer> = (0..1023)
        .map(|piece| Buffer::readable(at + piece, 1))
        .chain([Buffer::readable(at + 1023, packet.len() as u32 - 1023)])
        .collect();
    harness.rings[usize::from(TX)]
        .push_indirect(table, &buffers)
        .expect("room");
    harness.run(TX).expect("the device works");
    assert_eq!(host.receive(), Some(sent));
}

/// Descriptors that lie over one another are the guest's own affair: what is judged
/// is what is sent.
#[test]
fn overlapping_pieces_make_the_frame_that_was_judged() {
    let (mut harness, host) = harness();
    let zeros = harness.store(&[0; HEADER_LEN]);
    let own = frame(MAC, 60);
    let at = harness.store(&own);
    // Twice the same bytes, and the second half once more.
    harness.rings[usize::from(TX)]
        .push(&[
            Buffer::readable(zeros, HEADER_LEN as u32),
            Buffer::readable(at, 60),
            Buffer::readable(at, 60),
            Buffer::readable(at + 30, 30),
        ])
        .expect("room");
    // The header is part of the frame; so is the source address, which is another's.
    let packet = [&[0; HEADER_LEN], &frame([2, 0, 0, 0, 0, 9], 60)[..]].concat();
    let spoofed = harness.store(&packet);
    harness.rings[usize::from(TX)]
        .push(&[
            Buffer::readable(spoofed, 40),
            Buffer::readable(spoofed + 12, 60),
        ])
        .expect("room");
    harness.run(TX).expect("the device works");
    let expected = [&own[..], &own[..], &own[30..]].concat();
    assert_eq!(host.receive(), Some(expected));
    assert_eq!(host.receive(), None);
    assert_eq!(used(&mut harness, TX.into()), [0; 2]);
    assert_eq!(host.counters().tx_dropped, 1);
}

#[test]
fn a_frame_over_overlapping_buffers_is_answered_as_any() {
    let (mut harness, host) = harness();
    let at = harness.allocate(4096);
    for (offset, size) in [(0, 1000), (500, 1000), (0, 1000), (900, 2000)] {
        harness.rings[RX]
            .push(&[Buffer::writable(at + offset, size)])
            .expect("room");
    }
    let guard = harness.store(&[0xa5; 64]);
    host.send(&frame([6; 6], 2500));
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [1000, 1000, 512]);
    assert_eq!(harness.load(guard, 64), [0xa5; 64]);
    assert_eq!(host.counters().rx_bytes, 2500);
}

#[test]
fn a_host_that_takes_nothing_keeps_frames_in_the_ring() {
    let (mut harness, host) = harness();
    let sent = frame(MAC, 60_000);
    let header = harness.store(&[0; HEADER_LEN]);
    let at = harness.store(&sent);
    for _ in 0..30 {
        harness.rings[usize::from(TX)]
            .push(&[
                Buffer::readable(header, HEADER_LEN as u32),
                Buffer::readable(at, sent.len() as u32),
            ])
            .expect("room");
    }
    harness.run(TX).expect("the device works");
    let before = host.counters().tx_frames;
    assert!(before < 30, "the socket holds less");
    // The device rests until there is room, then goes on by itself.
    assert!(!harness.poll_host(Duration::ZERO).expect("the device works"));
    for _ in 0..30 {
        while host.receive().is_none_or(|frame| frame != sent) {
            assert!(harness.poll_host(Duration::from_secs(5)).expect("works"));
        }
    }
    harness.run(TX).expect("the device works");
    assert_eq!(host.counters().tx_frames, 30);
    assert_eq!(used(&mut harness, TX.into()).len(), 30);
}

#[test]
fn a_frame_for_the_guest_is_spread_over_its_buffers() {
    let (mut harness, host) = harness();
    let addresses = offer(&mut harness, &[1536, 20, 12, 4096]);
    let sent = frame([6; 6], 3000);
    host.send(&sent);
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [1536, 20, 12, 3012 - 1568]);
    let mut packet = harness.load(addresses[0], 1536);
    packet.extend(harness.load(addresses[1], 20));
    packet.extend(harness.load(addresses[2], 12));
    packet.extend(harness.load(addresses[3], 3012 - 1568));
    assert_eq!(packet[10..12], 4u16.to_le_bytes());
    assert_eq!(packet[HEADER_LEN..], sent);
    assert_eq!(host.counters().rx_bytes, 3000);
}

#[test]
fn many_buffers_take_frames_without_a_detour() {
    let (mut harness, host) = harness();
    // More than the largest packet, so that they are read in place.
    let addresses = offer(&mut harness, &[1536; 60]);
    let frames: Vec<_> = [60, 1514, 9000, 1524, 1525]
        .iter()
        .map(|&len| frame([6; 6], len))
        .collect();
    for frame in &frames {
        host.send(frame);
    }
    harness.run(RX as u16).expect("the device works");
    let lens = used(&mut harness, RX);
    let mut at = 0;
    for frame in &frames {
        let packet = HEADER_LEN + frame.len();
        let count = packet.div_ceil(1536);
        let mut got = Vec::new();
        for index in at..at + count {
            got.extend(harness.load(addresses[index], lens[index] as usize));
        }
        assert_eq!(got[10..12], (count as u16).to_le_bytes());
        assert_eq!(got[HEADER_LEN..], frame[..]);
        at += count;
    }
    assert_eq!(lens.len(), at);
    // What was gathered and not used is still the guest's to get.
    host.send(&frames[0]);
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [72]);
    assert_eq!(harness.queues[RX].queue().next_avail(), at as u16 + 1);
}

#[test]
fn a_guest_without_buffers_loses_nothing_and_keeps_nobody_busy() {
    let (mut harness, host) = harness();
    let sent = frame([6; 6], 2000);
    host.send(&sent);
    harness.run(RX as u16).expect("the device works");
    assert!(!harness.poll_host(Duration::ZERO).expect("the device works"));
    // Too little for the frame.
    let mut addresses = offer(&mut harness, &[1000]);
    harness.run(RX as u16).expect("the device works");
    assert!(used(&mut harness, RX).is_empty());
    assert!(!harness.poll_host(Duration::ZERO).expect("the device works"));
    addresses.extend(offer(&mut harness, &[1500]));
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [1000, 1012]);
    assert_eq!(
        harness.load(addresses[0] + 12, 988),
        sent[..988],
        "the frame that waited"
    );
    assert_eq!(host.counters().rx_dropped, 0);
}

#[test]
fn a_frame_that_no_ring_of_the_guest_can_hold_is_dropped() {
    let (net, host) = device(1);
    let mut harness = Harness::new(net, 2, MEMORY_MIB);
    offer(&mut harness, &[100, 100]);
    host.send(&frame([6; 6], 1000));
    host.send(&frame([6; 6], 60));
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [72]);
    assert_eq!(host.counters().rx_dropped, 1);
}

#[test]
fn buffers_too_small_for_a_header_go_back_empty() {
    let (mut harness, host) = harness();
    offer(&mut harness, &[0, 11, 1536, 4, 1536]);
    for _ in 0..2 {
        host.send(&frame([6; 6], 60));
    }
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [0, 0, 72, 0, 72]);
    // In the way of a frame that needs more than what comes before.
    offer(&mut harness, &[100, 4, 1536]);
    host.send(&frame([6; 6], 1000));
    host.send(&frame([6; 6], 60));
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [72, 0]);
    assert_eq!(host.counters().rx_dropped, 1);
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one() {
    let (mut harness, host) = harness_without(&[VIRTIO_NET_F_MRG_RXBUF]);
    let addresses = offer(&mut harness, &[100, 2000]);
    host.send(&frame([6; 6], 500));
    host.send(&frame([6; 6], 60));
    let large = frame([6; 6], 1514);
    host.send(&large);
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [72, 1526]);
    assert_eq!(harness.load(addresses[1] + 12, 1514), large);
    assert_eq!(harness.load(addresses[1] + 10, 2), [1, 0]);
    assert_eq!(host.counters().rx_dropped, 1);
}

#[test]
fn giant_frames_are_for_drivers_that_take_segments() {
    let without = [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6];
    let (mut harness, host) = harness_without(&without);
    offer(&mut harness, &[1536; 30]);
    host.send(&frame([6; 6], 1519));
    host.send(&frame([6; 6], 1518));
    harness.run(RX as u16).expect("the device works");
    assert_eq!(used(&mut harness, RX), [1530]);
    assert_eq!(host.counters().rx_dropped, 1);
}

#[test]
fn a_reset_device_starts_afresh() {
    let (mut harness, host) = harness();
    let features = harness.device.features();
    host.send(&frame([6; 6], 60));
    harness.run(RX as u16).expect("the device works");
    harness.device.reset();
    assert!(!harness.poll_host(Duration::ZERO).expect("nothing watched"));
    harness.device.activate(features);
    offer(&mut harness, &[1536]);
    assert!(harness.poll_host(Duration::ZERO).expect("works"));
    assert_eq!(used(&mut harness, RX), [72]);
}

/// The guest's command on the control queue; the answer.
fn set_pairs(harness: &mut Harness<Net>, command: &[u8]) -> u8 {
    let (to, ack) = (harness.store(command), harness.store(&[0xee]));
    let control = harness.rings.len() - 1;
    harness.rings[control]
        .push(&[
            Buffer::readable(to, command.len() as u32),
            Buffer::writable(ack, 1),
        ])
        .expect("room");
    harness.run(control as u16).expect("the device works");
    harness.load(ack, 1)[0]
}

#[test]
fn pairs_work_once_the_driver_wants_them() {
    let (net, host) = device(2);
    assert!(net.features() & 1 << VIRTIO_NET_F_MQ != 0);
    assert_eq!(net.queue_sizes().len(), 5);
    let mut harness = Harness::new(net, 64, MEMORY_MIB);
    let addr = harness.allocate(2048);
    harness.rings[2]
        .push(&[Buffer::writable(addr, 2048)])
        .expect("room");
    let packet = [&[0; HEADER_LEN], &frame([6; 6], 60)[..]].concat();
    rustix::io::write(&host.peers[1], &packet).expect("room");
    harness.run(2).expect("the device works");
    assert!(used(&mut harness, 2).is_empty());
    for (command, answer) in [
        (&[4, 0, 0, 0][..], 1),
        (&[4, 0, 3, 0], 1),
        (&[4, 1, 2, 0], 1),
        (&[0, 0, 1], 1),
        (&[4, 0, 2, 0], 0),
    ] {
        assert_eq!(set_pairs(&mut harness, command), answer, "{command:?}");
    }
    assert_eq!(used(&mut harness, 2), [72]);
    assert_eq!(set_pairs(&mut harness, &[4, 0, 1, 0]), 0);
}

#[test]
fn the_configuration_says_address_pairs_and_mtu() {
    let (net, _host) = device(3);
    let mut config = [0xff; 14];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0xdc, 0x05, 0, 0]);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let with = |change: fn(&mut NetSettings)| {
        let mut settings = settings();
        change(&mut settings);
        Net::with_taps(settings, vec![Tap::stand_in()]).map(|_| ())
    };
    assert!(matches!(with(|s| s.mtu = 67), Err(NetError::Mtu(67))));
    assert!(matches!(with(|s| s.mtu = 65_522), Err(NetError::Mtu(_))));
    assert!(matches!(with(|s| s.mac = [1; 6]), Err(NetError::Mac)));
    assert!(matches!(with(|s| s.mac = [0; 6]), Err(NetError::Mac)));
    assert!(matches!(
        Net::with_taps(settings(), Vec::new()),
        Err(NetError::Pairs(0))
    ));
    let file = tempfile::tempfile().expect("a file");
    assert!(matches!(
        Net::new(settings(), vec![file.into()]),
        Err(NetError::NoTap(_))
    ));
}

proptest! {
    /// Whatever buffers the guest offers, what it gets are whole frames.
    #[test]
    fn frames_arrive_whole_or_not_at_all(
        sizes in prop::collection::vec(0..3000u32, 1..40),
        lens in prop::collection::vec(14..4000usize, 1..12),
        mergeable in any::<bool>(),
    ) {
        let without: &[u32] = if mergeable { &[] } else { &[VIRTIO_NET_F_MRG_RXBUF] };
        let (mut harness, host) = harness_without(without);
        let addresses = offer(&mut harness, &sizes);
        for &len in &lens {
            host.send(&frame([6; 6], len));
        }
        harness.run(RX as u16).expect("the device works");
        let answers: Vec<u32> = used(&mut harness, RX);
        let mut got = 0;
        let mut at = 0;
        while at < answers.len() {
            if answers[at] == 0 {
                prop_assert!(sizes[at] < 12);
                at += 1;
                continue;
            }
            let header = harness.load(addresses[at], HEADER_LEN);
            let count = usize::from(u16::from_le_bytes([header[10], header[11]]));
            prop_assert!(count >= 1 && (mergeable || count == 1));
            let mut packet = Vec::new();
            for index in at..at + count {
                prop_assert!(answers[index] <= sizes[index]);
                packet.extend(harness.load(addresses[index], answers[index] as usize));
            }
            let len = packet.len() - HEADER_LEN;
            prop_assert!(lens.contains(&len));
            prop_assert_eq!(&packet[HEADER_LEN..], &frame([6; 6], len)[..]);
            got += 1;
            at += count;
        }
        prop_assert_eq!(host.counters().rx_frames, got);
        prop_assert!(got + host.counters().rx_dropped <= lens.len() as u64);
    }
}
