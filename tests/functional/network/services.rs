//! Services and policies are the cluster's: rules of the host, which packets of our
//! pods have to pass as any container's do.

use super::Net;
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::json;
use spherule_tests::{Host, import_peer};
use std::collections::BTreeSet;

/// What differs between the families.
struct Family {
    /// As nft names it.
    name: &'static str,
    address_type: &'static str,
    pods: &'static str,
    loopback: &'static str,
    /// A service of both pods, and one of the first alone.
    services: [&'static str; 2],
    /// Of the host on the wire to the other node.
    node_ip: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        address_type: "ipv4_addr",
        pods: "10.91.0.0/24",
        loopback: "127.0.0.0/8",
        services: ["10.96.0.10", "10.96.0.11"],
        node_ip: "192.0.2.1",
    },
    Family {
        name: "ip6",
        address_type: "ipv6_addr",
        pods: "fd91::/64",
        loopback: "::1",
        services: ["fd96::10", "fd96::11"],
        node_ip: "2001:db8::1",
    },
];

/// Address and port as a literal has them.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        return format!("[{ip}]:{port}");
    }
    format!("{ip}:{port}")
}

/// The rules of kube-proxy's nftables mode for a service of two pods, with a node
/// port, and for one of a single pod; by TCP and UDP.
fn kube_proxy(family: &Family, pods: [&str; 2]) -> String {
    let Family {
        name,
        address_type,
        pods: cluster,
        loopback,
        services: [both, single],
        ..
    } = family;
    let mut rules = format!(
        "add table {name} kube-proxy
add chain {name} kube-proxy mark-for-masquerade
add rule {name} kube-proxy mark-for-masquerade meta mark set meta mark or 0x4000
add chain {name} kube-proxy masquerading
add rule {name} kube-proxy masquerading meta mark and 0x4000 == 0 return
add rule {name} kube-proxy masquerading meta mark set meta mark xor 0x4000
add rule {name} kube-proxy masquerading masquerade fully-random
add map {name} kube-proxy service-ips {{ type {address_type} . inet_proto . inet_service : verdict ; }}
add map {name} kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add chain {name} kube-proxy services
add rule {name} kube-proxy services {name} daddr . meta l4proto . th dport vmap @service-ips
add rule {name} kube-proxy services fib daddr type local {name} daddr != {loopback} meta l4proto . th dport vmap @service-nodeports
add chain {name} kube-proxy nat-prerouting {{ type nat hook prerouting priority dstnat ; }}
add rule {name} kube-proxy nat-prerouting jump services
add chain {name} kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add rule {name} kube-proxy nat-output jump services
add chain {name} kube-proxy nat-postrouting {{ type nat hook postrouting priority srcnat ; }}
add rule {name} kube-proxy nat-postrouting jump masquerading
"
    );
    for protocol in ["tcp", "udp"] {
        for (number, pod) in pods.iter().enumerate() {
            let chain = format!("{name} kube-proxy endpoint-{protocol}-{number}");
            rules += &format!(
                "add chain {chain}
add rule {chain} {name} saddr {pod} jump mark-for-masquerade
add rule {chain} meta l4proto {protocol} dnat to {}
",
                at(pod, 7000)
            );
        }
        let to = |number| format!("goto endpoint-{protocol}-{number}");
        let spread = format!(
            "numgen random mod 2 vmap {{ 0 : {}, 1 : {} }}",
            to(0),
            to(1)
        );
        for (service, ip, end) in [("both", both, spread), ("single", single, to(0))] {
            let chain = format!("{name} kube-proxy service-{protocol}-{service}");
            rules += &format!(
                "add chain {chain}
add rule {chain} {name} daddr {ip} {protocol} dport 80 {name} saddr != {cluster} jump mark-for-masquerade
add rule {chain} {end}
add element {name} kube-proxy service-ips {{ {ip} . {protocol} . 80 : goto service-{protocol}-{service} }}
"
            );
        }
        rules += &format!(
            "add chain {name} kube-proxy external-{protocol}
add rule {name} kube-proxy external-{protocol} jump mark-for-masquerade
add rule {name} kube-proxy external-{protocol} goto service-{protocol}-both
add element {name} kube-proxy service-nodeports {{ {protocol} . 30080 : goto external-{protocol} }}
"
        );
    }
    rules
}

/// A host that forwards nothing by itself; routed pods, which the firewall plugin
/// lets through.
fn guarded_host() -> anyhow::Result<Host> {
    let host = Host::new()?;
    host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")?;
    let leases = host.dir().join("leases");
    let list = json!({"cniVersion": "1.0.0", "name": "spherule", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local", "dataDir": leases, "ranges": [
            [{"subnet": FAMILIES[0].pods}], [{"subnet": FAMILIES[1].pods}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "firewall"},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    host.write_list("10-routed.conflist", &list)?;
    Ok(host)
}

pub(super) fn as_kube_proxy() -> anyhow::Result<()> {
    let net = Net::on(guarded_host()?, &[])?;
    net.host.add_node()?;
    // A host finds no service that it has no route to.
    net.host
        .sh("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2")?;
    import_peer(&net.daemon)?;
    let client = net.peer_pod("client", "exec sleep 100000")?;
    // The plugin's chain for the administrator, here with kube-proxy's part: what
    // comes from other nodes is forwarded.
    net.host
        .sh("for t in iptables ip6tables; do $t -A CNI-ADMIN -i wire0 -j ACCEPT; done")?;
    let before = net.remains()?;
    let serve = "exec peer serve [::]:7000";
    let mut first = net.config("first");
    first.hostname = "first".into();
    first.port_mappings = vec![v1::PortMapping {
        container_port: 7000,
        host_port: 12070,
        ..v1::PortMapping::default()
    }];
    let first = net.peer_pod_with(&first, serve)?;
    let mut second = net.config("second");
    second.hostname = "second".into();
    let second = net.peer_pod_with(&second, serve)?;

    for (family, pods, own) in [
        (&FAMILIES[0], [&first.ip, &second.ip], &client.ip),
        (&FAMILIES[1], [&first.ip6, &second.ip6], &client.ip6),
    ] {
        let rules = net.host.dir().join("rules.nft");
        std::fs::write(&rules, kube_proxy(family, pods.map(String::as_str)))?;
        net.host.sh(&format!("nft -f {}", rules.display()))?;
        let [both, single] = family.services.map(|ip| at(ip, 80));

        // Pod to service: both answer, and see the pod itself.
        let who = |address: &str| net.sh(&client, &format!("peer who {address}"));
        answered_by_both(own, || who(&both))?;
        net.sh(
            &client,
            &format!("peer datagrams {both} 1 1000; peer send {single} 100000"),
        )?;
        // Pod to itself by its service: it has to see another address than its own.
        let itself = net.sh(&first, &format!("peer who {single}"))?;
        ensure!(
            itself.starts_with("first ") && !itself.contains(pods[0].as_str()),
            "{itself}"
        );
        // Host to service, and another node to the host's port; all by the host's name.
        let seen = net.host.peer(None, &format!("who {single}"))?;
        ensure!(seen.starts_with("first "), "{seen}");
        let node_port = at(family.node_ip, 30080);
        let from_node = |words: &str| net.host.peer(Some("node"), words);
        let host_ip = source_towards(&net.host, pods[0])?;
        answered_by_both(&host_ip, || from_node(&format!("who {node_port}")))?;
        from_node(&format!("datagrams {node_port} 1 1000"))?;
        let host_port = at(family.node_ip, 12070);
        let seen = from_node(&format!("who {host_port}"))?;
        ensure!(seen.starts_with("first "), "{seen}");
        policy(&net, family, &client, pods)?;
    }

    net.host
        .sh("nft delete table ip kube-proxy; nft delete table ip6 kube-proxy")?;
    for pod in [first, second] {
        net.cri.remove_pod(&pod.id)?;
    }
    net.ensure_clean(&before)
}

/// The host's own address on its way to another.
fn source_towards(host: &Host, ip: &str) -> anyhow::Result<String> {
    let route = host.sh(&format!("ip route get {ip}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "src");
    Ok(words.nth(1).context(route.clone())?.to_owned())
}

/// Asks until both pods have answered, each of which saw this address.
fn answered_by_both(seen: &str, ask: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    // By chance: that one of them is never meant has a probability of 2 to the -99.
    for _ in 0..100 {
        let answer = ask()?;
        let (name, ip) = answer.trim().split_once(' ').context("two words")?;
        ensure!(ip == seen, "{answer} for {seen}");
        names.insert(name.to_owned());
        if names.len() == 2 {
            return Ok(());
        }
    }
    anyhow::bail!("only {names:?} answered")
}

/// What a network policy's rule denies does not pass, and all else does.
fn policy(
    net: &Net,
    family: &Family,
    client: &super::Pod,
    pods: [&String; 2],
) -> anyhow::Result<()> {
    let name = family.name;
    let own = if name == "ip" {
        &client.ip
    } else {
        &client.ip6
    };
    net.host.sh(&format!(
        "nft add table {name} denials
         nft 'add chain {name} denials forward {{ type filter hook forward priority -10; }}'
         nft add rule {name} denials forward {name} saddr {own} {name} daddr {} counter drop",
        pods[0]
    ))?;
    let denied = at(pods[0], 7000);
    net.sh(
        client,
        &format!("! busybox timeout 2 peer who {denied} 2>/dev/null"),
    )?;
    net.sh(client, &format!("peer who {}", at(pods[1], 7000)))?;
    let counted = net
        .host
        .sh(&format!("nft list chain {name} denials forward"))?;
    ensure!(
        !counted.contains("packets 0 "),
        "nothing came by: {counted}"
    );
    net.host.sh(&format!("nft delete table {name} denials"))?;
    net.sh(client, &format!("peer who {denied}"))?;
    Ok(())
}
