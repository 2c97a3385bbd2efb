//! The default network: made, used, removed.

use crate::guest::Guest;
use crate::host::{Host, Node, attach, command, listen, on_host, request};
use pod_network::default_list::{self, InitError, Options};
use pod_network::{
    AttachRequest, Attachment, Bandwidth, Network, NetworkError, NetworkRecord, PortMapping,
    TapError, chain_text,
};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends bytes from one side to the other and back over TCP; panics where they
/// do not arrive as they were.
fn exchange(listener: &TcpListener, connect: impl FnOnce() -> TcpStream + Send, length: usize) {
    let bytes: Vec<u8> = (0..length)
        .map(|i| u8::try_from(i * 7 % 251).unwrap())
        .collect();
    // The listener's queue takes the connection before anyone accepts it.
    let mut stream = connect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut got = vec![0; length];
            stream.read_exact(&mut got).expect("what was sent");
            stream.write_all(&got).expect("sending it back");
        });
        stream.write_all(&bytes).expect("sending");
        let mut back = vec![0; length];
        stream.read_exact(&mut back).expect("what came back");
        assert!(back == bytes, "bytes changed on the way");
    });
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

#[test]
fn a_pod_leaves_nothing_behind() {
    on_host(|host| {
        host.write_default_list(&Options {
            firewall: true,
            ..host.default_options()
        });
        let network = host.network();
        let limited = |id: &str| {
            let mut wish = with_port(id, 9000);
            wish.capabilities.bandwidth =
                Some(Bandwidth::from_rates(Some(8_000_000), Some(4_000_000)));
            wish
        };
        let (record, attachment) = attach(&network, limited("warm"));
        assert!(record.ignored_capabilities().is_empty());
        drop(attachment);
        network.remove(&record).unwrap();
        let before = host.remains();
        let (record, attachment) = attach(&network, limited("a"));
        let limits = command("tc", &["qdisc", "show"]);
        assert!(
            limits.contains("rate 8Mbit") && limits.contains("rate 4Mbit"),
            "{limits}"
        );
        drop(attachment);
        assert_ne!(host.remains(), before);
        network.remove(&record).unwrap();
        assert_eq!(host.remains(), before);
        network.remove(&record).unwrap();
        assert!(network.adopt(&record).is_err());
    });
}

#[test]
fn a_pod_whose_vm_still_runs_is_removed_all_the_same() {
    on_host(|host| {
        let network = host.with_default_list();
        let (record, attachment) = attach(&network, request("warm"));
        drop(attachment);
        network.remove(&record).unwrap();
        let before = host.remains();
        let (record, attachment) = attach(&network, request("a"));
        network.remove(&record).unwrap();
        assert_eq!(host.remains(), before);
        // The TAP went with it: its descriptor leads nowhere.
        let end = rustix::io::write(&attachment.nics[0].taps[0], &[0; 100]);
        assert_eq!(end, Err(rustix::io::Errno::BADFD));
    });
}

#[test]
fn an_abandoned_pod_is_gone_but_for_what_plugins_keep() {
    on_host(|host| {
        let network = host.with_default_list();
        let (record, attachment) = attach(&network, request("a"));
        drop(attachment);
        std::fs::remove_file(host.config.conf_dir.join(default_list::FILE_NAME)).unwrap();
        network.abandon(&record).unwrap();
        let remains = host.remains();
        assert!(
            remains.iter().all(|line| !line.starts_with("run/")),
            "{remains:?}"
        );
        assert!(
            remains.iter().any(|line| line.starts_with("leases/")),
            "{remains:?}"
        );
    });
}

#[test]
fn other_kinds_of_interfaces_are_joined_too() {
    on_host(|host| {
        let node = Node::beside("192.0.2.1/24", "192.0.2.200/24");
        let network = host.network();
        let ipam = |subnet: &str| {
            serde_json::json!({"type": "host-local", "dataDir": host.leases(), "subnet": subnet,
                "routes": [{"dst": "0.0.0.0/0"}]})
        };
        for (plugin, peer) in [
            (
                serde_json::json!({"type": "ptp", "ipMasq": true, "ipam": ipam("10.8.0.0/24")}),
                "10.8.0.1:7000",
            ),
            // The node is beside the pod, the host itself out of its reach.
            (
                serde_json::json!({"type": "macvlan", "master": "wire0", "ipam": ipam("192.0.2.0/24")}),
                "192.0.2.200:7000",
            ),
        ] {
            let list = serde_json::json!({"cniVersion": "0.4.0", "name": "n", "plugins": [plugin]});
            host.write_list("10-net.conflist", &list.to_string());
            let (record, attachment) = attach(&network, request("a"));
            let guest = Guest::start(&attachment.nics[0]);
            let address: SocketAddr = peer.parse().unwrap();
            let listener = if plugin["type"] == "ptp" {
                listen(address)
            } else {
                node.within(|| listen(address))
            };
            exchange(
                &listener,
                || guest.within(|| TcpStream::connect(address).expect("the peer")),
                10_000,
            );
            drop((guest, attachment));
            network.remove(&record).unwrap();
        }
    });
}

#[test]
fn check_tells_what_was_changed() {
    on_host(|host| {
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
            {"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipam": {
                "type": "host-local", "dataDir": host.leases(), "subnet": "10.7.0.0/24"}},
        ]});
        host.write_list("10-net.conflist", &list.to_string());
        let network = host.network();
        let (record, attachment) = attach(&network, request("a"));
        // The addresses are still where the plugin looks for them.
        network.check(&record).unwrap();
        let netns = format!("--net={}", record.netns.display());
        command(
            "nsenter",
            &[&netns, "ip", "address", "flush", "dev", "eth0"],
        );
        let text = chain_text(&network.check(&record).unwrap_err());
        assert!(
            text.contains("\"bridge\"") && text.contains("CHECK"),
            "{text}"
        );
        drop(attachment);
        network.remove(&record).unwrap();
    });
}

/// A pod whose port 80 is that port of the host.
fn with_port(id: &str, host_port: u16) -> AttachRequest {
    let mut wish = request(id);
    wish.capabilities.port_mappings = vec![PortMapping {
        host_port,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: None,
    }];
    wish
}

#[test]
fn a_host_port_leads_to_the_pod_and_can_be_used_again() {
    on_host(|host| {
        let network = host.with_default_list();
        for id in ["first", "second"] {
            let (record, attachment) = attach(&network, with_port(id, 9001));
            let guest = Guest::start(&attachment.nics[0]);
            let pod_ip = attachment.pod_ips[0];
            let listener = guest.within(|| listen(SocketAddr::new(pod_ip, 80)));
            let host_ip = gateway(&attachment.nics[0], true);
            exchange(
                &listener,
                || TcpStream::connect((host_ip, 9001)).expect("the host's port"),
                10_000,
            );
            drop((guest, attachment));
            network.remove(&record).unwrap();
        }
    });
}

#[test]
fn twenty_pods_at_once_have_addresses_of_their_own_and_reach_each_other() {
    on_host(|host| {
        let network = host.with_default_list();
        let pods: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20)
                .map(|i| {
                    let network = &network;
                    scope.spawn(move || attach(network, request(&format!("pod{i}"))))
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("a pod"))
                .collect()
        });
        let addresses: BTreeSet<IpAddr> = pods
            .iter()
            .flat_map(|(_, attachment)| attachment.pod_ips.clone())
            .collect();
        assert_eq!(addresses.len(), 40);
        let macs: BTreeSet<_> = pods.iter().map(|(_, a)| a.nics[0].mac).collect();
        assert_eq!(macs.len(), 20);

        let one = Guest::start(&pods[3].1.nics[0]);
        let other = Guest::start(&pods[17].1.nics[0]);
        for family in [0, 1] {
            let address = SocketAddr::new(pods[17].1.pod_ips[family], 7000);
            let listener = other.within(|| listen(address));
            exchange(
                &listener,
                || one.within(|| TcpStream::connect(address).expect("pod to pod")),
                100_000,
            );
        }
        drop((one, other));
        let records: Vec<_> = pods.into_iter().map(|(record, _)| record).collect();
        std::thread::scope(|scope| {
            for record in &records {
                let network = &network;
                scope.spawn(move || network.remove(record).expect("removal"));
            }
        });
        assert!(host.remains().iter().all(|line| !line.contains("pod")));
    });
}

#[test]
fn large_frames_pass_where_the_network_has_them() {
    on_host(|host| {
        host.write_default_list(&Options {
            mtu: Some(9000),
            ..host.default_options()
        });
        let network = host.network();
        let (record, attachment) = attach(&network, request("a"));
        let nic = &attachment.nics[0];
        assert_eq!(nic.mtu, 9000);
        let guest = Guest::start(nic);
        let at_host = UdpSocket::bind(SocketAddr::new(gateway(nic, true), 0)).unwrap();
        let address = at_host.local_addr().unwrap();
        // One frame of exactly the MTU: 20 bytes of IPv4, 8 of UDP.
        let payload = vec![7; 9000 - 28];
        guest.within(|| {
            let socket = UdpSocket::bind((attachment.pod_ips[0], 0)).unwrap();
            socket
                .send_to(&payload, address)
                .expect("a frame of 9000 bytes")
        });
        let mut got = vec![0; 10_000];
        let (length, _) = at_host.recv_from(&mut got).unwrap();
        assert!(got[..length] == payload[..]);
        drop(guest);
        network.remove(&record).unwrap();
    });
}

#[test]
fn a_pod_reaches_the_world_masqueraded() {
    on_host(|host| {
        let network = host.with_default_list();
        // Another node, which knows no way to the pods.
        let (record, attachment) = attach(&network, request("a"));
        let node = Node::beside("192.0.2.1/24", "192.0.2.2/24");
        let guest = Guest::start(&attachment.nics[0]);
        let listener = node.within(|| listen("192.0.2.2:7000".parse().unwrap()));
        let stream = guest.within(|| TcpStream::connect("192.0.2.2:7000").expect("the world"));
        let (_, peer) = listener.accept().unwrap();
        drop(stream);
        assert_eq!(peer.ip().to_string(), "192.0.2.1");
        drop(guest);
        network.remove(&record).unwrap();
    });
}

/// Makes two interfaces by hand: eth0 with a gateway outside its subnet, as
/// Calico does, and net1, as Multus would.
const TWO_INTERFACES: &str = r#"
[ $CNI_COMMAND = ADD ] || { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; ip link del hosta 2>/dev/null; exit 0; }
set -e
in="nsenter --net=$CNI_NETNS"
ip link add hosta type veth peer name eth0 netns $CNI_NETNS
ip link add hostb type veth peer name net1 netns $CNI_NETNS
$in ip link set eth0 up mtu 1450
$in ip addr add 10.65.0.7/32 dev eth0
$in ip route add 169.254.1.1 dev eth0
$in ip route add default via 169.254.1.1 mtu 1400
$in ip neigh add 169.254.1.1 lladdr $(cat /sys/class/net/hosta/address) dev eth0 nud permanent
$in ip addr add 10.66.0.7/24 dev net1
ip link set hosta up
ip link set hostb up
ip route add 10.65.0.7 dev hosta
ip addr add 10.66.0.1/24 dev hostb
printf '{"cniVersion":"1.0.0","interfaces":[{"name":"hosta"},{"name":"net1","sandbox":"%s"},{"name":"eth0","sandbox":"%s"}],
 "ips":[{"address":"10.66.0.7/24","interface":1},{"address":"10.65.0.7/32","interface":2}],"dns":{"nameservers":["10.65.0.1"]}}' $CNI_NETNS $CNI_NETNS
"#;

/// A pod on the network that this plugin makes, with eth0 and net1.
fn attach_two(host: &Host, plugin: &str) -> (Network, NetworkRecord, Attachment) {
    host.write_plugin("two", plugin);
    host.write_list(
        "10-two.conf",
        r#"{"cniVersion":"1.0.0","name":"two","type":"two"}"#,
    );
    // /sys shows the namespace that it was mounted from.
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("sysfs", "/sys", "sysfs", flags, None).unwrap();
    let network = host.network();
    let (record, attachment) = attach(&network, request("a"));
    let names: Vec<&str> = attachment.nics.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    (network, record, attachment)
}

#[test]
fn interfaces_that_no_result_tells_of_come_through() {
    // As Multus does: several networks, one result. A bond's port and what a kernel
    // gives each namespace are no interfaces of the pod.
    let silent = TWO_INTERFACES
        .replace(r#",{"name":"net1","sandbox":"%s"}"#, "")
        .replace(r#"{"address":"10.66.0.7/24","interface":1},"#, "")
        .replace(r#""interface":2"#, r#""interface":1"#)
        .replace("$CNI_NETNS $CNI_NETNS\n", "$CNI_NETNS\n")
        .replace(
            "ip link set hosta up",
            "$in ip link add br0 type bridge
$in ip link add port type veth peer name idle
$in ip link set port master br0 up
ip link set hosta up",
        );
    on_host(move |host| {
        let (network, record, attachment) = attach_two(host, &silent);
        assert_eq!(
            attachment.nics[1].addresses,
            ["10.66.0.7/24".parse().unwrap()]
        );
        let wanted = record.nics.clone();
        drop(attachment);
        // The TAPs beside them are none of them.
        let again = network.adopt(&record).unwrap();
        assert_eq!(again.nics.len(), wanted.len());
        drop(again);
        network.remove(&record).unwrap();
    });
}

#[test]
fn several_interfaces_and_gateways_outside_the_subnet_come_through() {
    on_host(|host| {
        let (network, record, attachment) = attach_two(host, TWO_INTERFACES);
        assert_eq!(attachment.pod_ips, ["10.65.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(attachment.dns.nameservers, ["10.65.0.1"]);
        let nic = &attachment.nics[0];
        assert_eq!(nic.mtu, 1450);
        let routes: Vec<_> = nic
            .routes
            .iter()
            .map(|r| (r.destination.to_string(), r.gateway, r.on_link, r.mtu))
            .collect();
        let gateway = "169.254.1.1".parse().unwrap();
        assert_eq!(
            routes,
            [
                ("169.254.1.1/32".to_owned(), None, false, None),
                ("0.0.0.0/0".to_owned(), Some(gateway), false, Some(1400)),
            ]
        );
        assert_eq!(nic.neighbours.len(), 1);
        assert_eq!(nic.neighbours[0].address, gateway);

        let addresses: Vec<String> = attachment.nics[1]
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.66.0.7/24"]);
        let guest = Guest::start(&attachment.nics[1]);
        let listener = guest.within(|| listen("10.66.0.7:80".parse().unwrap()));
        exchange(
            &listener,
            || TcpStream::connect("10.66.0.7:80").expect("the second interface"),
            1000,
        );
        drop(guest);
        drop(attachment);
        assert_eq!(network.counters(&record).unwrap().len(), 2);
        network.remove(&record).unwrap();
    });
}

#[test]
fn a_running_pod_is_adopted_and_its_taps_are_opened_anew() {
    on_host(|host| {
        let network = host.with_default_list();
        for queues in [1, 4] {
            let mut wish = request("a");
            wish.queues = queues;
            let (record, attachment) = attach(&network, wish);
            let nic = &attachment.nics[0];
            assert_eq!(nic.taps.len(), usize::from(queues));

            // As the next run of the daemon: all it has is the record.
            let stored = serde_json::to_string(&record).unwrap();
            let record = serde_json::from_str(&stored).unwrap();
            let network = host.network();
            let adopted = network.adopt(&record).unwrap();
            let again = &adopted.nics[0];
            assert!(again.taps.is_empty());
            assert_eq!(
                (again.mac, again.mtu, &again.addresses, &again.routes),
                (nic.mac, nic.mtu, &nic.addresses, &nic.routes)
            );
            assert_eq!(adopted.pod_ips, attachment.pod_ips);
            let busy = network.reopen(&record).unwrap_err();
            assert!(
                matches!(busy, NetworkError::Tap(TapError::Busy(_))),
                "{busy:?}"
            );
            drop(attachment);
            // A process that another test starts has copies of the TAPs until its exec.
            let start = Instant::now();
            let reopened = loop {
                match network.reopen(&record) {
                    Err(NetworkError::Tap(TapError::Busy(_))) if start.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    reopened => break reopened.unwrap(),
                }
            };
            assert_eq!(reopened.nics[0].taps.len(), usize::from(queues));
            let guest = Guest::start(&reopened.nics[0]);
            let address = SocketAddr::new(reopened.pod_ips[0], 80);
            if queues == 1 {
                let listener = guest.within(|| listen(address));
                exchange(&listener, || TcpStream::connect(address).unwrap(), 1000);
            }
            drop((guest, reopened));
            network.remove(&record).unwrap();
        }
    });
}

#[test]
fn the_default_network_gives_way_to_others_and_to_the_host_s_routes() {
    on_host(|host| {
        let options = host.default_options();
        let write = |options: &Options| {
            default_list::write(&host.config.conf_dir, &host.config.plugin_dirs, options)
        };
        assert!(!write(&options).unwrap().unchanged);
        assert!(write(&options).unwrap().unchanged);
        let other = Options {
            mtu: Some(1400),
            ..options.clone()
        };
        assert!(matches!(write(&other), Err(InitError::Exists(_))));
        let forced = Options {
            force: true,
            ..other
        };
        assert!(!write(&forced).unwrap().unchanged);
        host.write_list("05-cilium.conflist", "{}");
        let unforced = Options {
            force: false,
            ..forced.clone()
        };
        assert!(
            matches!(write(&unforced), Err(InitError::Exists(path)) if path.ends_with("05-cilium.conflist"))
        );
        host.write_list(
            "05-cilium.conflist",
            r#"{"cniVersion":"1.0.0","name":"c","plugins":[{"type":"c"}]}"#,
        );
        let written = write(&forced).unwrap();
        assert!(
            written
                .overridden_by
                .unwrap()
                .ends_with("05-cilium.conflist")
        );

        let _node = Node::beside("10.88.3.1/24", "10.88.3.2/24");
        let changed = Options {
            mtu: None,
            ..forced
        };
        let error = write(&changed).unwrap_err();
        assert!(matches!(error, InitError::Overlap { .. }), "{error}");
        let missing = default_list::write(&host.config.conf_dir, &[], &options).unwrap_err();
        assert!(matches!(missing, InitError::Plugin { name: "bridge", .. }));
    });
}
