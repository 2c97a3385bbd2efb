//! The default network: made, used, removed.

use crate::guest::Guest;
use crate::host::{attach, on_host, request};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Sends bytes from one side to the other and back over TCP; panics where they
/// do not arrive as they were.
fn exchange(listener: &TcpListener, connect: impl FnOnce() -> TcpStream + Send, length: usize) {
    let bytes: Vec<u8> = (0..length)
        .map(|i| u8::try_from(i * 7 % 251).unwrap())
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut got = vec![0; length];
            stream.read_exact(&mut got).expect("what was sent");
            stream.write_all(&got).expect("sending it back");
        });
        let mut stream = connect();
        stream.write_all(&bytes).expect("sending");
        let mut back = vec![0; length];
        stream.read_exact(&mut back).expect("what came back");
        assert!(back == bytes, "bytes changed on the way");
    });
}

/// Listens as soon as the address may be used: IPv6 looks for a duplicate first.
fn listen(address: SocketAddr) -> TcpListener {
    for _ in 0..200 {
        match TcpListener::bind(address) {
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other.expect("a listener"),
        }
    }
    panic!("{address} is not to be had");
}

fn gateway(nic: &pod_network::Nic, v4: bool) -> IpAddr {
    nic.routes
        .iter()
        .filter_map(|route| route.gateway)
        .find(|ip| ip.is_ipv4() == v4)
        .expect("a gateway")
}

#[test]
fn guest_and_host_speak_tcp_over_both_families() {
    on_host(|host| {
        let network = host.with_default_list();
        let (record, attachment) = attach(&network, request("a"));
        let nic = &attachment.nics[0];
        assert_eq!(nic.name, "eth0");
        assert_eq!(attachment.pod_ips.len(), 2);
        assert!(attachment.pod_ips[0].is_ipv4() && attachment.pod_ips[1].is_ipv6());
        let guest = Guest::start(nic);
        for (v4, pod_ip) in [
            (true, attachment.pod_ips[0]),
            (false, attachment.pod_ips[1]),
        ] {
            let listener = listen(SocketAddr::new(gateway(nic, v4), 0));
            let address = listener.local_addr().unwrap();
            exchange(
                &listener,
                || guest.within(|| TcpStream::connect(address).expect("guest to host")),
                1 << 20,
            );
            let listener =
                guest.within(|| TcpListener::bind(SocketAddr::new(pod_ip, 8080)).unwrap());
            exchange(
                &listener,
                || TcpStream::connect((pod_ip, 8080)).expect("host to guest"),
                1 << 20,
            );
        }
        let counters = network.counters(&record).unwrap();
        assert!(counters[0].rx_bytes > 4 << 20, "{counters:?}");
        assert!(counters[0].tx_bytes > 4 << 20, "{counters:?}");
        drop(guest);
        drop(attachment);
        network.remove(&record).unwrap();
    });
}
