//! A guest's vsock driver for the tests: buffers, packets and credit, with none
//! of the care that a real one takes.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

use super::device::Vsock;
use super::muxer::Limits;
use super::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use crate::testing::{Buffer, Harness};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

pub(super) const CID: u64 = 3;
/// Bytes in a receive buffer, as Linux has them.
pub(super) const RX_BUFFER: u32 = 4096;
const RX: u16 = 0;
const TX: u16 = 1;
/// Long enough for a busy machine; nothing waits this long but a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A packet that the guest got.
pub(super) type Packet = (Header, Vec<u8>);

pub(super) struct Guest {
    pub(super) harness: Harness<Vsock>,
    dir: TempDir,
    /// Addresses of the receive buffers, by head.
    offered: HashMap<u16, u64>,
    idle: Vec<u64>,
    /// Buffers are offered again as soon as they are read.
    pub(super) refill: bool,
    tx_buffer: u64,
}

impl Guest {
    /// A guest whose driver has `buffers` receive buffers.
    pub(super) fn new(buffers: usize) -> Guest {
        Self::with_limits(buffers, Limits::default())
    }

    pub(super) fn with_limits(buffers: usize, limits: Limits) -> Guest {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Vsock::with_limits(CID, dir.path().join("vsock"), limits).expect("a device");
        let mut harness = Harness::new(device, 256, 16);
        let idle = (0..buffers).map(|_| harness.allocate(RX_BUFFER)).collect();
        let tx_buffer = harness.allocate(1 << 20);
        let mut guest = Guest {
            harness,
            dir,
            offered: HashMap::new(),
            idle,
            refill: true,
            tx_buffer,
        };
        guest.offer_buffers();
        guest
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("vsock")
    }

    /// Where the host's service for `port` listens.
    pub(super) fn service_path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("vsock_{port}"))
    }

    /// A client of the host.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).expect("the device listens");
        client
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        client
    }

    /// Offers all receive buffers that are free, and rings.
    pub(super) fn offer_buffers(&mut self) {
        while let Some(addr) = self.idle.pop() {
            let head = self.harness.rings[usize::from(RX)]
                .push(&[Buffer::writable(addr, RX_BUFFER)])
                .expect("room in the ring");
            self.offered.insert(head, addr);
        }
        self.harness.kick(RX).expect("the device works");
    }

    /// The next packet that is there.
    pub(super) fn try_receive(&mut self) -> Option<Packet> {
        let (head, len) = self.harness.rings[usize::from(RX)].pop_used()?;
        let addr = self.offered.remove(&head).expect("an offered buffer");
        let bytes = self.harness.load(addr, len as usize);
        let (header, data) = bytes.split_first_chunk::<HEADER_SIZE>().expect("a header");
        let header = Header::decode(header);
        if header.op == op::RW {
            assert_eq!(header.len as usize, data.len());
        } else {
            assert_eq!((header.len, data.len()), (0, 0));
        }
        self.idle.push(addr);
        if self.refill {
            self.offer_buffers();
        }
        Some((header, data.to_vec()))
    }

    /// The next packet, as soon as the device has one.
    pub(super) fn receive(&mut self) -> Packet {
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            let worked = self.harness.poll_host(PATIENCE).expect("the device works");
            assert!(worked, "the device has no packet for the guest");
        }
    }

    /// The next packet, which is one of `op`.
    pub(super) fn expect(&mut self, op: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.0.op, op, "{:?}", packet.0);
        packet
    }

    /// Lets the device do all it can.
    pub(super) fn settle(&mut self) {
        while self
            .harness
            .poll_host(Duration::ZERO)
            .expect("the device works")
        {}
    }

    /// Whether the device has nothing to say.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.settle();
        self.try_receive().is_none()
    }

    /// Sends a packet; the device takes it at once.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        let memory = &self.harness.memory;
        let base = self.tx_buffer;
        memory
            .write_slice(&header.encode(), GuestAddress(base))
            .expect("in memory");
        memory
            .write_slice(data, GuestAddress(base + 64))
            .expect("in memory");
        let mut buffers = vec![Buffer::readable(base, HEADER_SIZE as u32)];
        if !data.is_empty() {
            buffers.push(Buffer::readable(base + 64, data.len() as u32));
        }
        self.push_tx(&buffers);
    }

    pub(super) fn push_tx(&mut self, buffers: &[Buffer]) {
        self.harness.rings[usize::from(TX)]
            .push(buffers)
            .expect("room in the ring");
        self.harness.kick(TX).expect("the device works");
        self.harness.rings[usize::from(TX)]
            .pop_used()
            .expect("the device took it");
    }
}

/// The guest's end of a connection.
#[derive(Clone, Debug)]
pub(super) struct GuestSocket {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    /// Room for the host's data.
    pub(super) room: u32,
    pub(super) taken: u32,
    sent: u32,
    host_room: u32,
    host_taken: u32,
}

impl GuestSocket {
    pub(super) fn new(host_port: u32, guest_port: u32) -> GuestSocket {
        GuestSocket {
            host_port,
            guest_port,
            room: 1 << 16,
            taken: 0,
            sent: 0,
            host_room: 0,
            host_taken: 0,
        }
    }

    /// Accepts the connection that a client asks for with `CONNECT`.
    pub(super) fn accept(guest: &mut Guest, port: u32) -> GuestSocket {
        let (request, _) = guest.expect(op::REQUEST);
        assert_eq!(request.dst_port, port);
        let mut socket = GuestSocket::new(request.src_port, port);
        socket.note(&request);
        socket.say(guest, op::RESPONSE);
        socket
    }

    /// Connects to a service of the host.
    pub(super) fn connect(guest: &mut Guest, host_port: u32, guest_port: u32) -> GuestSocket {
        let mut socket = GuestSocket::new(host_port, guest_port);
        socket.say(guest, op::REQUEST);
        let (response, _) = guest.expect(op::RESPONSE);
        assert_eq!(response.src_port, host_port);
        assert_eq!(response.dst_port, guest_port);
        socket.note(&response);
        socket
    }

    pub(super) fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: self.room,
            fwd_cnt: self.taken,
        }
    }

    /// Learns the credit that a packet from the host tells of.
    pub(super) fn note(&mut self, header: &Header) {
        self.host_room = header.buf_alloc;
        self.host_taken = header.fwd_cnt;
    }

    /// Bytes that the host has room for.
    pub(super) fn credit(&self) -> usize {
        (self.host_room - self.sent.wrapping_sub(self.host_taken)) as usize
    }

    /// Sends a packet without data.
    pub(super) fn say(&self, guest: &mut Guest, op: u16) {
        guest.send(&self.header(op), &[]);
    }

    pub(super) fn shut_down(&self, guest: &mut Guest, flags: u32) {
        let mut header = self.header(op::SHUTDOWN);
        header.flags = flags;
        guest.send(&header, &[]);
    }

    /// Sends data, credit or not.
    pub(super) fn write(&mut self, guest: &mut Guest, data: &[u8]) {
        let mut header = self.header(op::RW);
        header.len = data.len() as u32;
        self.sent = self.sent.wrapping_add(header.len);
        guest.send(&header, data);
    }

    /// Reads one packet of data, and says so.
    pub(super) fn read(&mut self, guest: &mut Guest) -> Vec<u8> {
        let (header, data) = guest.expect(op::RW);
        self.take(guest, &header, &data);
        data
    }

    /// Takes data out of the buffer, as a reader does.
    pub(super) fn take(&mut self, guest: &mut Guest, header: &Header, data: &[u8]) {
        self.note(header);
        self.taken = self.taken.wrapping_add(data.len() as u32);
        self.say(guest, op::CREDIT_UPDATE);
    }
}
