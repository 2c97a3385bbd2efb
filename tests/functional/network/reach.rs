//! Who reaches whom.

use super::{Net, Pod, privileged};
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{Cri, container_config};
use spherule_tests::import_peer;
use std::collections::BTreeSet;

pub(super) fn addresses() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let cri = &net.cri;
    let status = cri.wait(cri.runtime.clone().status(v1::StatusRequest::default()))?;
    let conditions = status.status.unwrap_or_default().conditions;
    ensure!(conditions.iter().all(|c| c.status), "{conditions:?}");

    let pod = cri.run(&net.config("pinged"))?;
    let network = cri.sandbox(&pod)?.network.context("no network")?;
    let ipv6 = network
        .additional_ips
        .first()
        .context("no second address")?;
    for ip in [&network.ip, &ipv6.ip] {
        net.host.sh(&format!("busybox ping -c 3 -W 10 {ip}"))?;
    }
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod.clone(),
    };
    let stats = cri.wait(cri.runtime.clone().pod_sandbox_stats(request))?;
    let usage = stats.stats.and_then(|stats| stats.linux?.network);
    let eth0 = usage.and_then(|usage| usage.default_interface);
    let eth0 = eth0.context("no figures of traffic")?;
    let sent = eth0.tx_bytes.unwrap_or_default().value;
    // Three answers by IPv4, 98 bytes each, and three by IPv6.
    ensure!(eth0.name == "eth0" && sent >= 6 * 98, "{eth0:?}");
    let listed = net.daemon.cli(["ps"])?.ok()?;
    ensure!(listed.contains(&network.ip), "{listed}");

    cri.stop_pod(&pod)?;
    ensure!(cri.sandbox(&pod)?.network.is_none(), "an address stays");
    net.ensure_clean(&before)?;
    cri.remove_pod(&pod)?;
    Ok(())
}

/// By both families, TCP and UDP: pod to pod, host to pod, pod to host, and to and
/// from a namespace that plays another node.
pub(super) fn everybody() -> anyhow::Result<()> {
    let crossing = Crossing::new()?;
    let exchange = |address: &str| {
        // A datagram of one byte, one of a whole frame, one in fragments.
        format!(
            "peer send {address} 1048576; peer fetch {address} 1048577; \
             peer datagrams {address} 1 1452 20000"
        )
    };
    crossing.client_does(&crossing.everywhere(), exchange)?;
    crossing.others_do(exchange)?;
    crossing.end()
}

/// A gibibyte each way by both families, pod to pod and between pod and host.
pub(super) fn gibibyte() -> anyhow::Result<()> {
    let crossing = Crossing::new()?;
    let server = crossing.server_addresses();
    for (command, address) in [
        ("send", &server[0]),
        ("send", &server[1]),
        ("send", &HOST[0].to_owned()),
        ("fetch", &HOST[0].to_owned()),
        ("fetch", &HOST[1].to_owned()),
    ] {
        let exchange = |address: &str| format!("peer {command} {address} 1073741824");
        crossing.client_does(std::slice::from_ref(address), exchange)?;
    }
    crossing.end()
}

/// Addresses at which the host and the other node serve.
const HOST: [&str; 2] = ["10.88.0.1:7000", "[fd88:5f3e::1]:7000"];
const NODE: [&str; 2] = ["192.0.2.2:7000", "[2001:db8::2]:7000"];

/// Two pods, their host and another node, all but one pod serving on port 7000.
struct Crossing {
    net: Net,
    server: Pod,
    client: Pod,
}

impl Crossing {
    fn new() -> anyhow::Result<Self> {
        let net = Net::new()?;
        import_peer(&net.daemon)?;
        net.host.add_node()?;
        net.host.serve(None, 7000)?;
        net.host.serve(Some("node"), 7000)?;
        let server = net.peer_pod("server", "exec peer serve [::]:7000")?;
        let client = net.peer_pod("client", "exec sleep 100000")?;
        Ok(Self {
            net,
            server,
            client,
        })
    }

    fn server_addresses(&self) -> [String; 2] {
        let Pod { ip, ip6, .. } = &self.server;
        [format!("{ip}:7000"), format!("[{ip6}]:7000")]
    }

    /// All at which somebody serves.
    fn everywhere(&self) -> Vec<String> {
        let others = HOST.into_iter().chain(NODE).map(str::to_owned);
        self.server_addresses().into_iter().chain(others).collect()
    }

    /// The client does something with each address.
    fn client_does(
        &self,
        addresses: &[String],
        act: impl Fn(&str) -> String,
    ) -> anyhow::Result<()> {
        for address in addresses {
            self.net.sh_within(&self.client, &act(address), 280)?;
        }
        Ok(())
    }

    /// The host and the other node do something with the server's addresses.
    fn others_do(&self, act: impl Fn(&str) -> String) -> anyhow::Result<()> {
        for address in self.server_addresses() {
            for netns in [None, Some("node")] {
                for line in act(&address).split("; ") {
                    let arguments = line.trim_start_matches("peer ");
                    self.net.host.peer(netns, arguments)?;
                }
            }
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        for pod in [&self.server, &self.client] {
            self.net.cri.remove_pod(&pod.id)?;
        }
        Ok(())
    }
}

pub(super) fn many() -> anyhow::Result<()> {
    at_once(6)
}

pub(super) fn twenty() -> anyhow::Result<()> {
    at_once(20)
}

/// Makes so many pods at once, whose addresses are all different, and removes them
/// at once.
fn at_once(count: usize) -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let socket = net.socket();
    let configs = (0..count).map(|n| net.config(&format!("many-{n}")));
    let ids = side_by_side(configs.collect(), |config| {
        Ok(Cri::at(&socket)?.run(&config)?)
    })?;
    let mut ips = BTreeSet::new();
    for id in &ids {
        let network = net.cri.sandbox(id)?.network.context("no network")?;
        ips.insert(network.ip);
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    }
    ensure!(ips.len() == 2 * count, "{ips:?}");
    side_by_side(ids, |id| Ok(Cri::at(&socket)?.remove_pod(&id)?))?;
    net.ensure_clean(&before)
}

/// Does something with all of them at once.
fn side_by_side<T: Send, R: Send>(
    items: Vec<T>,
    act: impl Fn(T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let act = &act;
    std::thread::scope(|scope| {
        let acts: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || act(item)))
            .collect();
        let done = acts.into_iter().map(|act| act.join().expect("no panic"));
        done.collect()
    })
}

/// A privileged container gives itself the addresses of another pod: what it sends from
/// them is dropped, and what it sends from its own is not.
pub(super) fn spoofing() -> anyhow::Result<()> {
    let net = Net::new()?;
    let victim = net.pod_with(
        &net.config("victim"),
        container_config("c", "exec sleep 1000"),
    )?;
    let mut config = net.config("spoofer");
    let mut container = container_config("c", "exec sleep 1000");
    privileged(&mut config, &mut container);
    let pod = net.pod_with(&config, container)?;
    let hosts = ["10.88.0.1", "fd88:5f3e::1"];
    let addresses = [&victim.ip, &victim.ip6];
    net.sh(&pod, "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad")?;
    let rules = [
        ("iptables", "-p icmp --icmp-type echo-request", 32),
        ("ip6tables", "-p icmpv6 --icmpv6-type echo-request", 128),
    ];
    let own = [&pod.ip, &pod.ip6];
    let places = own.into_iter().zip(addresses).zip(hosts).zip(rules);
    for (((own, address), host), (rules, pings, bits)) in places {
        let from_own = format!("busybox ping -c 1 -W 10 -I {own} {host}");
        net.sh(&pod, &from_own)?;
        // Counts what is seen from the victim.
        let rule = format!("-s {address} {pings}");
        net.host.sh(&format!("{rules} -I INPUT {rule}"))?;
        let ping = format!("busybox ping -c 1 -W 2 -I {address} {host}");
        net.sh(
            &pod,
            &format!("ip addr add {address}/{bits} dev eth0; ! {ping}"),
        )?;
        let counted = || {
            net.host
                .sh(&format!("{rules} -nvxL INPUT 1 | awk '{{ print $1 }}'"))
        };
        ensure!(counted()? == "0\n", "{address} was spoofed");
        net.sh(&victim, &ping)?;
        ensure!(counted()? != "0\n", "the rule {rule} counts nothing");
        net.sh(&pod, &from_own)?;
    }
    net.sh(&pod, "ip link set eth0 address 02:00:00:00:00:99")?;
    net.sh(&pod, "! busybox ping -c 2 -W 1 10.88.0.1")?;
    for pod in [&pod, &victim] {
        net.cri.remove_pod(&pod.id)?;
    }
    Ok(())
}

/// A pod without name resolution of its own has that of the network or the node; one
/// with it has its own alone.
pub(super) fn names() -> anyhow::Result<()> {
    let net = Net::new()?;
    // The bridge comes with the first pod.
    let first = net.cri.run(&net.config("first"))?;
    net.host.start(
        "dnsmasq --keep-in-foreground --no-resolv --no-hosts --listen-address=10.88.0.1 \
         --bind-interfaces --address=/db.example.test/10.9.8.7 \
         --address=/db.example.test/fd09::7 --pid-file --user=root",
    )?;
    let mut config = net.config("asks");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.88.0.1".to_owned()],
        searches: vec!["example.test".to_owned()],
        options: vec!["ndots:2".to_owned()],
    });
    let pod = net.pod_with(&config, container_config("c", "exec sleep 1000"))?;
    // One question at a time: of two that it asks at once, busybox loses one now and
    // then on a busy machine.
    for (kind, address) in [("a", "10.9.8.7"), ("aaaa", "fd09::7")] {
        let ask = format!("busybox nslookup -type={kind} db.example.test");
        let answer = net.sh(&pod, &ask)?;
        ensure!(answer.contains(address), "{answer}");
    }
    let file = net.sh(&pod, "cat /etc/resolv.conf")?;
    let expected = "search example.test\nnameserver 10.88.0.1\noptions ndots:2\n";
    ensure!(file == expected, "{file}");
    for id in [&first, &pod.id] {
        net.cri.remove_pod(id)?;
    }
    Ok(())
}
