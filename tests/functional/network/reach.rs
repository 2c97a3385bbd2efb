//! Who reaches whom.

use super::{Net, privileged};
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{Cri, container_config};
use std::collections::BTreeSet;

/// Pods that the test runs at once.
const MANY: usize = 6;
/// A megabyte that nobody has seen before.
const SERVE: &str = "dd if=/dev/urandom of=/www/blob bs=64k count=16 2>/dev/null; \
                     exec httpd -f -p 80 -h /www";

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

/// By both families: pod to pod, host to pod, pod to host, and to and from a
/// namespace that plays another node.
pub(super) fn everybody() -> anyhow::Result<()> {
    let net = Net::new()?;
    net.host.sh(
        "ip netns add node; ip link add wire0 type veth peer name wire1 netns node
         ip addr add 192.0.2.1/24 dev wire0; ip addr add 2001:db8::1/64 dev wire0
         ip link set wire0 up
         ip -n node addr add 192.0.2.2/24 dev wire1; ip -n node addr add 2001:db8::2/64 dev wire1
         ip -n node link set wire1 up; ip -n node route add default via 192.0.2.1
         ip -n node -6 route add default via 2001:db8::1",
    )?;
    let server = net.pod("server", SERVE)?;
    let client = net.pod("client", "exec sleep 1000")?;
    let sum = net.sh(&server, "sha256sum < /www/blob")?;
    let file = net.host.dir().join("blob");
    for ip in [server.ip.clone(), format!("[{}]", server.ip6)] {
        for netns in [None, Some("node")] {
            std::fs::write(&file, net.host.get(netns, &format!("{ip}:80/blob"))?)?;
            let got = net.host.sh(&format!("sha256sum < {}", file.display()))?;
            ensure!(got == sum, "{netns:?}: {got} for {sum}");
        }
    }
    for ip in [
        server.ip.as_str(),
        server.ip6.as_str(),
        "10.88.0.1",
        "fd88:5f3e::1",
        "192.0.2.2",
        "2001:db8::2",
    ] {
        net.sh(&client, &format!("busybox ping -c 2 -W 10 {ip}"))?;
    }
    for pod in [server, client] {
        net.cri.remove_pod(&pod.id)?;
    }
    Ok(())
}

pub(super) fn many() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let ids = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..MANY)
            .map(|n| {
                let (socket, config) = (net.socket(), net.config(&format!("many-{n}")));
                scope.spawn(move || anyhow::Ok(Cri::at(&socket)?.run(&config)?))
            })
            .collect();
        let ids = runs.into_iter().map(|run| run.join().expect("no panic"));
        ids.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut ips = BTreeSet::new();
    for id in &ids {
        let network = net.cri.sandbox(id)?.network.context("no network")?;
        ips.insert(network.ip);
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    }
    ensure!(ips.len() == 2 * MANY, "{ips:?}");
    for id in &ids {
        net.cri.remove_pod(id)?;
    }
    net.ensure_clean(&before)
}

/// A privileged container gives itself another's address: what it sends then is
/// dropped, and what it sends from its own is not.
pub(super) fn spoofing() -> anyhow::Result<()> {
    let net = Net::new()?;
    let mut config = net.config("spoofer");
    let mut container = container_config("c", "exec sleep 1000");
    privileged(&mut config, &mut container);
    let pod = net.pod_with(&config, container)?;
    net.sh(&pod, "busybox ping -c 1 -W 10 10.88.0.1")?;
    let silent = |ping: &str| net.sh(&pod, &format!("! {ping}"));
    net.sh(&pod, "ip addr add 10.88.77.77/16 dev eth0")?;
    silent("busybox ping -c 2 -W 1 -I 10.88.77.77 10.88.0.1")?;
    net.sh(&pod, "ip link set eth0 address 02:00:00:00:00:99")?;
    silent("busybox ping -c 2 -W 1 10.88.0.1")?;
    net.cri.remove_pod(&pod.id)?;
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
    let answer = net.sh(&pod, "busybox nslookup db.example.test")?;
    ensure!(
        answer.contains("10.9.8.7") && answer.contains("fd09::7"),
        "{answer}"
    );
    let file = net.sh(&pod, "cat /etc/resolv.conf")?;
    let expected = "search example.test\nnameserver 10.88.0.1\noptions ndots:2\n";
    ensure!(file == expected, "{file}");
    for id in [&first, &pod.id] {
        net.cri.remove_pod(id)?;
    }
    Ok(())
}
