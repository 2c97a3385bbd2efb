//! Clients and guests that break the rules.

use super::*;

#[test]
fn malformed_first_lines_close_the_client() {
    let mut guest = Guest::new(16);
    for line in [
        "\n",
        "HELLO\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 4294967295\n",
        "CONNECT 99999999999\n",
        "CONNECT 1024 and more than fits in a line",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).expect("write");
        guest.settle();
        let mut rest = [0];
        // Closed with unread bytes is a reset, to a unix socket.
        match client.read(&mut rest) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{line:?}: {other:?}"),
        }
    }
    assert!(guest.is_quiet());
}

#[test]
fn a_first_line_may_come_byte_by_byte() {
    let mut guest = Guest::new(16);
    let mut client = guest.client();
    for byte in b"CONNECT 1024\n" {
        assert!(guest.is_quiet());
        client.write_all(&[*byte]).expect("write");
    }
    GuestSocket::accept(&mut guest, PORT);
}

#[test]
fn a_client_that_says_nothing_is_closed() {
    let limits = Limits {
        first_line: Duration::from_millis(20),
        ..Limits::default()
    };
    let mut guest = Guest::with_limits(16, limits);
    let silent = guest.client();
    let mut half = guest.client();
    half.write_all(b"CONN").expect("write");
    let reader = thread::spawn(move || {
        let mut rest = [0];
        let silent = (&silent).read(&mut rest).expect("an end");
        let half = half.read(&mut rest);
        (silent, half.is_ok_and(|len| len > 0))
    });
    while !reader.is_finished() {
        guest
            .harness
            .poll_host(Duration::from_millis(10))
            .expect("the device works");
    }
    assert_eq!(reader.join().expect("the reader"), (0, false));
}

#[test]
fn packets_that_belong_to_nobody_are_reset() {
    let mut guest = Guest::new(16);
    let stray = GuestSocket::new(4000, 5000);
    for operation in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_REQUEST, 99] {
        stray.say(&mut guest, operation);
        guest.expect(op::RST);
    }
    stray.say(&mut guest, op::RST);
    assert!(guest.is_quiet(), "a reset is never answered");
    let mut datagram = stray.header(op::RW);
    datagram.kind = 3;
    guest.send(&datagram, &[]);
    let (reset, _) = guest.expect(op::RST);
    assert_eq!(reset.kind, 3);
}

#[test]
fn packets_with_foreign_addresses_are_dropped() {
    let mut guest = Guest::new(16);
    let socket = GuestSocket::new(4000, 5000);
    for (src_cid, dst_cid) in [
        (CID + 1, HOST_CID),
        (CID, 1),
        (CID, CID),
        (HOST_CID, HOST_CID),
    ] {
        let mut header = socket.header(op::REQUEST);
        header.src_cid = src_cid;
        header.dst_cid = dst_cid;
        guest.send(&header, &[]);
        assert!(guest.is_quiet());
    }
}

#[test]
fn a_second_request_for_a_connection_resets_it() {
    let mut guest = Guest::new(16);
    let service = UnixListener::bind(guest.service_path(80)).expect("bind");
    let socket = GuestSocket::connect(&mut guest, 80, 5000);
    let (peer, _) = service.accept().expect("accept");
    socket.say(&mut guest, op::REQUEST);
    guest.expect(op::RST);
    assert_eq!(read_all(&peer), b"");
}

#[test]
fn a_length_that_the_chain_does_not_have_resets_the_connection() {
    for len in [10, u32::MAX] {
        let mut guest = Guest::new(16);
        let (client, socket) = connected(&mut guest);
        let mut header = socket.header(op::RW);
        header.len = len;
        guest.send(&header, b"short");
        guest.expect(op::RST);
        assert_eq!(read_all(&client), b"");
    }
}

#[test]
fn packets_too_short_for_a_header_are_dropped() {
    let mut guest = Guest::new(16);
    let addr = guest.harness.store(&[0xff; HEADER_SIZE - 1]);
    guest.push_tx(&[Buffer::readable(addr, HEADER_SIZE as u32 - 1)]);
    assert!(guest.is_quiet());
}

#[test]
fn a_packet_scattered_over_many_descriptors_is_put_together() {
    let mut guest = Guest::new(16);
    let (client, socket) = connected(&mut guest);
    let mut header = socket.header(op::RW);
    header.len = 30;
    let mut bytes = header.encode().to_vec();
    let data = pattern(9, 30);
    bytes.extend_from_slice(&data);
    let addr = guest.harness.store(&bytes);
    let buffers: Vec<_> = (0..bytes.len() as u32)
        .step_by(7)
        .map(|at| Buffer::readable(addr + u64::from(at), (bytes.len() as u32 - at).min(7)))
        .collect();
    guest.push_tx(&buffers);
    assert_eq!(read_exactly(&client, 30), data);
}

#[test]
fn buffers_without_room_for_data_are_given_back_unused() {
    let mut guest = Guest::new(0);
    let addr = guest.harness.allocate(64);
    guest.harness.rings[0]
        .push(&[Buffer::writable(addr, HEADER_SIZE as u32)])
        .expect("room");
    GuestSocket::new(81, 5000).say(&mut guest, op::REQUEST);
    assert_eq!(
        guest.harness.rings[0].pop_used().map(|(_, len)| len),
        Some(0)
    );
}

#[test]
fn refusals_that_the_guest_does_not_take_stop_its_packets() {
    let mut guest = Guest::new(0);
    let stray = GuestSocket::new(4000, 5000);
    let addr = guest.harness.store(&stray.header(op::REQUEST).encode());
    let packet = [Buffer::readable(addr, HEADER_SIZE as u32)];
    let mut taken = 0;
    let mut offered = 0;
    for _ in 0..4 {
        while guest.harness.rings[1].push(&packet).is_some() {
            offered += 1;
        }
        guest.harness.kick(1).expect("the device works");
        guest.settle();
        while guest.harness.rings[1].pop_used().is_some() {
            taken += 1;
        }
    }
    assert_eq!(taken, 256, "one for each refusal that may wait");
    // Every buffer now frees one, and lets one more packet in.
    let mut resets = 0;
    while resets < offered {
        let addr = guest.harness.allocate(RX_BUFFER);
        guest.harness.rings[0]
            .push(&[Buffer::writable(addr, RX_BUFFER)])
            .expect("room");
        guest.harness.kick(0).expect("the device works");
        assert!(guest.harness.rings[0].pop_used().is_some());
        resets += 1;
    }
    while guest.harness.rings[1].pop_used().is_some() {
        taken += 1;
    }
    assert_eq!(taken, offered);
}
