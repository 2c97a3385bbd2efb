//! The socket device between real unix sockets and a guest's driver.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod hostile;

use super::connection::BUFFER_SIZE;
use super::fake_guest::{CID, Guest, GuestSocket, RX_BUFFER};
use super::muxer::Limits;
use super::packet::{
    HEADER_SIZE, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op,
};
use crate::VirtioDevice;
use crate::testing::Buffer;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;
use virtio_queue::QueueT;

const PORT: u32 = 1024;

/// A client of the host that is connected to a listening guest.
fn connected(guest: &mut Guest) -> (UnixStream, GuestSocket) {
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    let socket = GuestSocket::accept(guest, PORT);
    let ok = format!("OK {}\n", socket.host_port);
    assert_eq!(read_line(&client), ok);
    (client, socket)
}

fn read_line(mut client: &UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).expect("a whole line");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("ASCII")
}

fn read_all(mut client: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("an orderly end");
    all
}

fn read_exactly(mut client: &UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    client.read_exact(&mut data).expect("read");
    data
}

/// Bytes that repeat in no power of two.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| ((at ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn a_client_connects_and_both_sides_talk() {
    let mut guest = Guest::new(16);
    let (mut client, mut socket) = connected(&mut guest);
    assert_eq!(socket.host_port, 1 << 30);
    client.write_all(b"to the guest").expect("write");
    assert_eq!(socket.read(&mut guest), b"to the guest");
    socket.write(&mut guest, b"to the host");
    assert_eq!(read_exactly(&client, 11), b"to the host");
}

#[test]
fn what_a_client_sends_with_its_first_line_reaches_the_guest() {
    let mut guest = Guest::new(16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\nat once").expect("write");
    let mut socket = GuestSocket::accept(&mut guest, PORT);
    assert_eq!(socket.read(&mut guest), b"at once");
}

#[test]
fn a_client_that_the_guest_refuses_is_closed_without_a_word() {
    let mut guest = Guest::new(16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    let (request, _) = guest.expect(op::REQUEST);
    GuestSocket::new(request.src_port, PORT).say(&mut guest, op::RST);
    assert_eq!(read_all(&client), b"");
    assert!(guest.is_quiet());
}

#[test]
fn the_guest_connects_to_a_service_of_the_host() {
    let mut guest = Guest::new(16);
    let service = UnixListener::bind(guest.service_path(80)).expect("bind");
    let mut socket = GuestSocket::connect(&mut guest, 80, 5000);
    let (mut peer, _) = service.accept().expect("accept");
    socket.write(&mut guest, b"question");
    assert_eq!(read_exactly(&peer, 8), b"question");
    peer.write_all(b"answer").expect("write");
    assert_eq!(socket.read(&mut guest), b"answer");
}

#[test]
fn a_service_that_is_not_there_refuses() {
    let mut guest = Guest::new(16);
    let socket = GuestSocket::new(81, 5000);
    socket.say(&mut guest, op::REQUEST);
    let (reset, _) = guest.expect(op::RST);
    assert_eq!((reset.src_cid, reset.dst_cid), (HOST_CID, CID));
    assert_eq!((reset.src_port, reset.dst_port), (81, 5000));
}

#[test]
fn a_service_with_a_full_backlog_refuses_and_does_not_block() {
    let mut guest = Guest::new(16);
    let path = guest.service_path(80);
    let service = UnixListener::bind(&path).expect("bind");
    // As many as the kernel lets wait; the device's own are among them.
    let mut refused = false;
    for port in 0..10_000 {
        GuestSocket::new(80, port).say(&mut guest, op::REQUEST);
        let (answer, _) = guest.receive();
        if answer.op == op::RST {
            refused = true;
            break;
        }
        assert_eq!(answer.op, op::RESPONSE);
    }
    assert!(refused);
    drop(service);
}

#[test]
fn a_client_waits_for_the_driver() {
    let mut guest = Guest::new(0);
    for queue in &mut guest.harness.queues {
        crate::VirtQueue::queue(queue).set_ready(false);
    }
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    assert!(guest.is_quiet());
    // Linux resets a device before it takes it.
    guest.harness.device.reset();
    assert!(guest.is_quiet());
    for queue in &mut guest.harness.queues {
        crate::VirtQueue::queue(queue).set_ready(true);
    }
    let buffer = guest.harness.allocate(RX_BUFFER);
    guest.harness.rings[0]
        .push(&[Buffer::writable(buffer, RX_BUFFER)])
        .expect("room");
    guest.harness.kick(0).expect("the device works");
    let (_, len) = guest.harness.rings[0].pop_used().expect("a packet");
    assert_eq!(len as usize, HEADER_SIZE);
    let bytes = guest.harness.load(buffer, HEADER_SIZE);
    let header = Header::decode(bytes.first_chunk().expect("a header"));
    assert_eq!((header.op, header.dst_port), (op::REQUEST, PORT));
}

#[test]
fn a_client_that_goes_before_the_driver_comes_is_forgotten() {
    let mut guest = Guest::new(0);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.settle();
    drop(client);
    guest.settle();
    let (mut client, _) = {
        let buffer = guest.harness.allocate(RX_BUFFER);
        guest.harness.rings[0]
            .push(&[Buffer::writable(buffer, RX_BUFFER)])
            .expect("room");
        guest.harness.kick(0).expect("the device works");
        (guest.client(), buffer)
    };
    assert!(guest.harness.rings[0].pop_used().is_none());
    client.write_all(b"CONNECT 7\n").expect("write");
    guest.settle();
    assert!(guest.harness.rings[0].pop_used().is_some());
}

#[test]
fn ten_mebibytes_to_the_guest_with_little_credit() {
    let mut guest = Guest::new(8);
    let data = pattern(1, 10 << 20);
    let (mut client, mut socket) = connected(&mut guest);
    socket.room = 5000;
    socket.say(&mut guest, op::CREDIT_UPDATE);
    let expected = data.clone();
    let writer = thread::spawn(move || {
        client.write_all(&data).expect("write");
        client.shutdown(Shutdown::Write).expect("shutdown");
        client
    });
    let mut got = Vec::new();
    loop {
        let (header, data) = guest.receive();
        match header.op {
            op::RW => {
                assert!(data.len() <= 5000, "more than the guest has room for");
                got.extend_from_slice(&data);
                socket.take(&mut guest, &header, &data);
            }
            op::CREDIT_REQUEST => socket.say(&mut guest, op::CREDIT_UPDATE),
            op::SHUTDOWN => break,
            other => panic!("unexpected {other}"),
        }
    }
    assert!(got == expected);
    drop(writer.join().expect("the writer"));
}

#[test]
fn ten_mebibytes_to_the_host_within_its_credit() {
    let mut guest = Guest::new(8);
    let data = pattern(2, 10 << 20);
    let (client, mut socket) = connected(&mut guest);
    let reader = thread::spawn(move || read_all(&client));
    let mut rest = &data[..];
    while !rest.is_empty() {
        let len = rest.len().min(socket.credit()).min(65536);
        if len == 0 {
            let (update, _) = guest.expect(op::CREDIT_UPDATE);
            socket.note(&update);
            continue;
        }
        let (piece, tail) = rest.split_at(len);
        socket.write(&mut guest, piece);
        rest = tail;
    }
    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    loop {
        let (header, _) = guest.receive();
        if header.op == op::RST {
            break;
        }
        assert_eq!(header.op, op::CREDIT_UPDATE);
    }
    assert!(reader.join().expect("the reader") == data);
}

#[test]
fn both_directions_at_once() {
    let mut guest = Guest::new(32);
    let (client, mut socket) = connected(&mut guest);
    let (to_guest, to_host) = (pattern(3, 2 << 20), pattern(4, 2 << 20));
    let mut writing = client.try_clone().expect("clone");
    let sent = to_guest.clone();
    let writer = thread::spawn(move || {
        writing.write_all(&sent).expect("write");
        writing.shutdown(Shutdown::Write).expect("shutdown");
    });
    let reader = thread::spawn(move || read_all(&client));
    let mut got = Vec::new();
    let mut rest = &to_host[..];
    let mut ended = false;
    while !ended || !rest.is_empty() {
        let len = rest.len().min(socket.credit()).min(20_000);
        if len > 0 {
            let (piece, tail) = rest.split_at(len);
            socket.write(&mut guest, piece);
            rest = tail;
        }
        let packet = if len > 0 {
            guest.try_receive()
        } else {
            Some(guest.receive())
        };
        if let Some((header, data)) = packet {
            socket.note(&header);
            match header.op {
                op::RW => {
                    got.extend_from_slice(&data);
                    socket.take(&mut guest, &header, &data);
                }
                op::SHUTDOWN => ended = true,
                _ => {}
            }
        }
    }
    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    writer.join().expect("the writer");
    assert!(got == to_guest);
    while guest.receive().0.op != op::RST {}
    assert!(reader.join().expect("the reader") == to_host);
}

#[test]
fn a_client_that_ended_sending_still_receives() {
    let mut guest = Guest::new(16);
    let (mut client, mut socket) = connected(&mut guest);
    client.write_all(b"the whole request").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(socket.read(&mut guest), b"the whole request");
    let (end, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(end.flags, SHUTDOWN_SEND);
    socket.write(&mut guest, b"the answer");
    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    guest.expect(op::RST);
    assert_eq!(read_all(&client), b"the answer");
}

#[test]
fn a_guest_that_ended_sending_still_receives() {
    let mut guest = Guest::new(16);
    let (mut client, mut socket) = connected(&mut guest);
    socket.write(&mut guest, b"the whole request");
    socket.shut_down(&mut guest, SHUTDOWN_SEND);
    assert_eq!(read_all(&client), b"the whole request");
    client.write_all(b"the answer").expect("write");
    assert_eq!(socket.read(&mut guest), b"the answer");
    drop(client);
    let (end, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(end.flags & SHUTDOWN_RECEIVE, SHUTDOWN_RECEIVE);
    if end.flags != SHUTDOWN_BOTH {
        let (end, _) = guest.expect(op::SHUTDOWN);
        assert_eq!(end.flags, SHUTDOWN_BOTH);
    }
    socket.say(&mut guest, op::RST);
    assert!(guest.is_quiet());
}

#[test]
fn a_guest_that_ended_receiving_stops_the_client() {
    let mut guest = Guest::new(16);
    let (mut client, socket) = connected(&mut guest);
    socket.shut_down(&mut guest, SHUTDOWN_RECEIVE);
    let refused = client.write_all(b"more").expect_err("nobody reads");
    assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn the_last_bytes_of_a_closed_client_reach_the_guest_before_the_end() {
    let mut guest = Guest::new(4);
    let (mut client, mut socket) = connected(&mut guest);
    let data = pattern(5, 100_000);
    client.write_all(&data).expect("write");
    drop(client);
    let mut got = Vec::new();
    loop {
        let (header, data) = guest.receive();
        match header.op {
            op::RW => {
                got.extend_from_slice(&data);
                socket.take(&mut guest, &header, &data);
            }
            op::SHUTDOWN if header.flags == SHUTDOWN_BOTH => break,
            op::SHUTDOWN => assert_eq!(header.flags, SHUTDOWN_RECEIVE),
            op::CREDIT_REQUEST => socket.say(&mut guest, op::CREDIT_UPDATE),
            other => panic!("unexpected {other}"),
        }
    }
    assert!(got == data);
}

#[test]
fn what_the_guest_sent_reaches_a_slow_client_after_the_guest_closed() {
    for reset in [false, true] {
        let mut guest = Guest::new(4);
        let (client, mut socket) = connected(&mut guest);
        // More than the unix socket holds: the rest waits in the device.
        let data = pattern(6, BUFFER_SIZE as usize);
        for piece in data.chunks(65536) {
            socket.write(&mut guest, piece);
        }
        let mut more = Vec::new();
        while let Some((update, _)) = {
            guest.settle();
            guest.try_receive()
        } {
            socket.note(&update);
            more = pattern(7, socket.credit());
            for piece in more.chunks(65536) {
                socket.write(&mut guest, piece);
            }
        }
        socket.shut_down(&mut guest, SHUTDOWN_BOTH);
        if reset {
            // Linux gives up waiting for the reset after eight seconds.
            socket.say(&mut guest, op::RST);
        }
        let reader = thread::spawn(move || read_all(&client));
        while !reader.is_finished() {
            guest
                .harness
                .poll_host(Duration::from_millis(10))
                .expect("the device works");
        }
        let got = reader.join().expect("the reader");
        assert!(got.starts_with(&data));
        assert!(got.ends_with(&more));
        let mut resets = 0;
        while let Some((header, _)) = guest.try_receive() {
            resets += usize::from(header.op == op::RST);
        }
        assert_eq!(resets, usize::from(!reset));
    }
}

#[test]
fn a_reset_by_the_guest_ends_the_client() {
    let mut guest = Guest::new(16);
    let (client, mut socket) = connected(&mut guest);
    socket.write(&mut guest, b"last words");
    socket.say(&mut guest, op::RST);
    assert_eq!(read_all(&client), b"last words");
    assert!(guest.is_quiet());
    socket.write(&mut guest, b"from the grave");
    guest.expect(op::RST);
}

#[test]
fn a_guest_that_never_answers_a_closed_client_is_reset() {
    let limits = Limits {
        reset: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(16, limits);
    let (client, _socket) = connected(&mut guest);
    drop(client);
    while guest.receive().0.op != op::RST {}
}

#[test]
fn a_guest_that_takes_nothing_more_from_a_closed_client_is_reset() {
    let limits = Limits {
        reset: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(16, limits);
    let (mut client, socket) = connected(&mut guest);
    let room = socket.room as usize;
    client.write_all(&pattern(8, room + 1)).expect("write");
    drop(client);
    let mut got = 0;
    loop {
        let (header, data) = guest.receive();
        got += data.len();
        // While there is something to say, nobody is told of the end.
        assert_ne!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
        if header.op == op::RST {
            break;
        }
    }
    assert_eq!(got, room);
    client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.expect(op::REQUEST);
}

#[test]
fn a_guest_that_never_answers_a_request_is_reset_and_the_client_closed() {
    let limits = Limits {
        response: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(16, limits);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.expect(op::REQUEST);
    guest.expect(op::RST);
    assert_eq!(read_all(&client), b"");
}

#[test]
fn a_client_that_gives_up_before_the_answer_resets_the_request() {
    let mut guest = Guest::new(16);
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\n").expect("write");
    guest.expect(op::REQUEST);
    drop(client);
    guest.expect(op::RST);
}

#[test]
fn many_connections_keep_their_bytes_apart() {
    let mut guest = Guest::new(64);
    let mut pairs: Vec<_> = (0..200).map(|_| connected(&mut guest)).collect();
    let mut ports: Vec<_> = pairs.iter().map(|(_, socket)| socket.host_port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 200);
    for (index, (client, _)) in pairs.iter_mut().enumerate() {
        write!(client, "number {index}").expect("write");
    }
    for _ in 0..pairs.len() {
        let (header, data) = guest.expect(op::RW);
        let index = pairs
            .iter()
            .position(|(_, socket)| socket.host_port == header.src_port)
            .expect("a known connection");
        assert_eq!(data, format!("number {index}").into_bytes());
        let socket = &mut pairs[index].1;
        socket.write(&mut guest, &data);
    }
    for (index, (client, _)) in pairs.iter().enumerate() {
        let expected = format!("number {index}").into_bytes();
        assert_eq!(read_exactly(client, expected.len()), expected);
    }
}

#[test]
fn beyond_the_limit_clients_and_guests_are_refused_until_one_goes() {
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(16, limits);
    let _service = UnixListener::bind(guest.service_path(80)).expect("bind");
    let _first = connected(&mut guest);
    let _second = connected(&mut guest);
    let third = guest.client();
    guest.settle();
    let fourth = guest.client();
    guest.settle();
    assert_eq!(read_all(&fourth), b"");
    GuestSocket::new(80, 5000).say(&mut guest, op::REQUEST);
    guest.expect(op::RST);
    drop(third);
    guest.settle();
    let _third = connected(&mut guest);
}

#[test]
fn a_client_that_does_not_read_stalls_nobody_else() {
    let mut guest = Guest::new(16);
    let (stalled, mut to_stalled) = connected(&mut guest);
    let (mut client, mut socket) = connected(&mut guest);
    // Until no credit is left: socket and buffer are full.
    loop {
        let len = to_stalled.credit().min(65536);
        if len == 0 {
            guest.settle();
            match guest.try_receive() {
                Some((update, _)) => to_stalled.note(&update),
                None => break,
            }
        } else {
            to_stalled.write(&mut guest, &vec![7; len]);
        }
    }
    for round in 0..50u32 {
        let data = pattern(round, 3000);
        client.write_all(&data).expect("write");
        assert_eq!(socket.read(&mut guest), data);
        socket.write(&mut guest, &data);
        assert_eq!(read_exactly(&client, data.len()), data);
    }
    // Going beyond the credit is the guest's fault, and the connection's end.
    // (It is told of room in steps of less than this.)
    to_stalled.write(&mut guest, &[7; 65536]);
    let (reset, _) = guest.expect(op::RST);
    assert_eq!(reset.src_port, to_stalled.host_port);
    drop(stalled);
    client.write_all(b"still here").expect("write");
    assert_eq!(socket.read(&mut guest), b"still here");
}

#[test]
fn a_connection_without_credit_stalls_nobody_else() {
    let mut guest = Guest::new(16);
    let (mut stalled, mut no_room) = connected(&mut guest);
    no_room.room = 0;
    no_room.say(&mut guest, op::CREDIT_UPDATE);
    stalled.write_all(b"waits").expect("write");
    let (ask, _) = guest.expect(op::CREDIT_REQUEST);
    assert_eq!(ask.src_port, no_room.host_port);
    let (mut client, mut socket) = connected(&mut guest);
    client.write_all(b"goes on").expect("write");
    assert_eq!(socket.read(&mut guest), b"goes on");
    assert!(guest.is_quiet());
    no_room.room = 3;
    no_room.say(&mut guest, op::CREDIT_UPDATE);
    assert_eq!(no_room.read(&mut guest), b"wai");
    assert_eq!(
        {
            let mut rest = Vec::new();
            while rest.len() < 2 {
                let (header, data) = guest.receive();
                if header.op == op::RW {
                    rest.extend_from_slice(&data);
                }
            }
            rest
        },
        b"ts"
    );
}

#[test]
fn a_guest_without_buffers_costs_nothing_and_loses_nothing() {
    let mut guest = Guest::new(4);
    let (mut client, mut socket) = connected(&mut guest);
    guest.refill = false;
    let data = pattern(8, 50_000);
    client.write_all(&data).expect("write");
    guest.settle();
    // All four buffers are used up; the socket is still readable, and yet the
    // device does not ask for its turn.
    assert!(
        !guest
            .harness
            .poll_host(Duration::from_millis(20))
            .expect("poll")
    );
    let mut got = Vec::new();
    let mut packets = 0;
    while let Some((_, data)) = guest.try_receive() {
        got.extend_from_slice(&data);
        packets += 1;
    }
    assert_eq!(packets, 4);
    guest.refill = true;
    socket.taken += got.len() as u32;
    guest.offer_buffers();
    while got.len() < data.len() {
        got.extend_from_slice(&socket.read(&mut guest));
    }
    assert!(got == data);
}

#[test]
fn a_reset_of_the_device_closes_what_the_guest_knew() {
    let mut guest = Guest::new(16);
    let (client, _) = connected(&mut guest);
    guest.harness.device.reset();
    assert_eq!(read_all(&client), b"");
    let (mut client, mut socket) = connected(&mut guest);
    client.write_all(b"again").expect("write");
    assert_eq!(socket.read(&mut guest), b"again");
}

#[test]
fn the_socket_goes_with_the_device() {
    let guest = Guest::new(0);
    let path = guest.path();
    assert!(path.exists());
    drop(guest.harness);
    assert!(!path.exists());
}

#[test]
fn the_configuration_is_the_identifier() {
    let guest = Guest::new(0);
    let mut config = [0xff; 12];
    guest.harness.device.read_config(0, &mut config);
    assert_eq!(config[..8], CID.to_le_bytes());
    assert_eq!(config[8..], [0; 4]);
    guest.harness.device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}
