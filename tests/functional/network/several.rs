//! Pods with more than one network, as Multus gives them.

use super::{Net, Pod};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::json;
use spherule_tests::Host;
use spherule_tests::cri::container_config;

/// Delegates to the bridge, makes a second interface, and tells of the first one only.
const DELEGATES: &str = r#"
config=$(sed 's/"type":"delegates"/"type":"bridge"/')
out=$(printf '%s' "$config" | /usr/lib/cni/bridge) || { printf '%s' "$out"; exit 1; }
[ $CNI_COMMAND = DEL ] && ip link del hostb 2>/dev/null
if [ $CNI_COMMAND = ADD ]; then
    in="nsenter --net=$CNI_NETNS"
    ip link add hostb type veth peer name net1 netns $CNI_NETNS
    $in ip addr add 10.66.0.7/24 dev net1
    $in ip addr add fd66::7/64 dev net1 nodad
    $in ip route add 10.67.0.0/16 via 10.66.0.1
    ip addr add 10.66.0.1/24 dev hostb
    ip addr add 10.67.0.1/32 dev lo
    ip addr add fd66::1/64 dev hostb nodad
    ip link set hostb up
fi
printf '%s' "$out"
"#;

fn node() -> anyhow::Result<Net> {
    let host = Host::new()?;
    host.write_plugin("delegates", DELEGATES)?;
    let ipam = json!({"type": "host-local", "dataDir": host.dir().join("leases"),
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}]});
    let delegates = json!({"type": "delegates", "bridge": "br0", "isGateway": true, "ipam": ipam});
    let tuning = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "77",
        "net.ipv4.conf.eth0.arp_ignore": "1", "net.ipv4.ip_unprivileged_port_start": "99"}});
    host.write_list(
        "10-two.conflist",
        &json!({"cniVersion": "1.0.0", "name": "two", "plugins": [delegates, tuning]}),
    )?;
    Net::on(host, &[])
}

/// All of them are the guest's, also where its users are those of a namespace.
pub(super) fn interfaces() -> anyhow::Result<()> {
    let net = node()?;
    let before = net.remains()?;
    let range = || {
        vec![v1::IdMapping {
            host_id: 100_000,
            container_id: 0,
            length: 65536,
        }]
    };
    let mut config = net.config("several");
    let linux = config.linux.as_mut().context("no linux")?;
    linux.sysctls = [("net.ipv4.ip_unprivileged_port_start".into(), "7".into())].into();
    linux.security_context = Some(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(v1::NamespaceOption {
            userns_options: Some(v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: range(),
                gids: range(),
            }),
            ..v1::NamespaceOption::default()
        }),
        ..v1::LinuxSandboxSecurityContext::default()
    });
    let pod = net.pod_with(
        &config,
        container_config(
            "c",
            "echo page >/www/page && exec httpd -f -p [::]:80 -h /www",
        ),
    )?;
    ensure!(net.cri.sandbox(&pod.id)?.network.context("none")?.ip == pod.ip);
    look(&net, &pod)?;
    // The network's, but for what the pod has of its own.
    let tuned = "cd /proc/sys/net; cat core/somaxconn ipv4/conf/eth0/arp_ignore";
    ensure!(
        net.sh(&pod, tuned)? == "77\n1\n",
        "{}",
        net.sh(&pod, tuned)?
    );
    let own = net.sh(
        &pod,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/self/uid_map",
    )?;
    ensure!(own.starts_with("7\n") && own.contains("100000"), "{own}");
    for host in [pod.ip.as_str(), "10.66.0.7", "[fd66::7]"] {
        ensure!(net.page(&format!("{host}:80/page"))? == "page", "{host}");
    }
    net.cri.remove_pod(&pod.id)?;
    let mut after = net.remains()?;
    after.retain(|line| line != "link br0");
    ensure!(after == before, "left: {after:#?}");
    Ok(())
}

fn look(net: &Net, pod: &Pod) -> anyhow::Result<()> {
    let addresses = net.sh(pod, "ip addr show")?;
    for address in [&format!("{}/16", pod.ip), "10.66.0.7/24", "fd66::7/64"] {
        ensure!(addresses.contains(address), "no {address}: {addresses}");
    }
    for address in ["10.88.0.1", "10.66.0.1", "10.67.0.1"] {
        net.sh(pod, &format!("busybox ping -c 1 -W 10 {address}"))?;
    }
    Ok(())
}
