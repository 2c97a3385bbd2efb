//! Rules of the guest, packet sizes, rates.

use super::{Net, Pod};
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{container_config, image};
use spherule_tests::{Host, import_peer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use test_images::{Compression, Layer, busybox_image};

const TOOLS: &str = "localhost/nft:test";

/// Jumbo frames pass whole; what a pod whose annotations limit it sends and gets
/// passes the shapers, and is counted by the host as by the guest itself.
pub(super) fn mtu_rates_and_figures() -> anyhow::Result<()> {
    let host = Host::new()?;
    host.init(&["--mtu", "9000"])?;
    let net = Net::on(host, &[])?;
    import_peer(&net.daemon)?;
    let mut config = net.config("limited");
    let rates = [("ingress", "10M"), ("egress", "20M")];
    for (direction, rate) in rates {
        let name = format!("kubernetes.io/{direction}-bandwidth");
        config.annotations.insert(name, rate.into());
    }
    let pod = net.peer_pod_with(&config, "exec peer serve [::]:7000")?;
    let link = net.sh(&pod, "ip link show eth0")?;
    ensure!(link.contains("mtu 9000"), "{link}");
    // 8972 bytes and the headers are 9000; nothing takes it in pieces.
    let ping = format!("busybox ping -c 2 -W 10 -s 8972 {}", pod.ip);
    net.host.sh(&ping)?;
    let bytes = 1 << 20;
    for command in ["send", "fetch"] {
        let line = format!("{command} {}:7000 {bytes}", pod.ip);
        net.host.peer(None, &line)?;
    }
    let queues = net.host.sh("tc -s qdisc show")?;
    for rate in ["10Mbit", "20Mbit"] {
        let passed = shaped(&queues, rate).with_context(|| queues.clone())?;
        ensure!(passed > bytes, "{rate}: {passed} bytes of {queues}");
    }
    let [received, sent] = settled_figures(&net, &pod)?;
    ensure!(received > bytes && sent > bytes, "{received} {sent}");
    net.cri.remove_pod(&pod.id)?;
    let queues = net.host.sh("tc qdisc show")?;
    ensure!(!queues.contains("tbf"), "{queues}");
    Ok(())
}

/// Bytes that passed the token bucket of that rate, in what `tc -s qdisc` says.
fn shaped(queues: &str, rate: &str) -> Option<u64> {
    let mut lines = queues.lines();
    lines.find(|line| line.contains("tbf") && line.contains(&format!("rate {rate} ")))?;
    let sent = lines.next()?.trim().strip_prefix("Sent ")?;
    sent.split_whitespace().next()?.parse().ok()
}

/// Bytes that a pod got and sent by its statistics, once the guest counts the same:
/// a frame may be between the two.
fn settled_figures(net: &Net, pod: &Pod) -> anyhow::Result<[u64; 2]> {
    let files = "/sys/class/net/eth0/statistics";
    let script = format!("cat {files}/rx_bytes {files}/tx_bytes");
    let mut seen = Vec::new();
    for _ in 0..30 {
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let stats = net
            .cri
            .wait(net.cri.runtime.clone().pod_sandbox_stats(request))?;
        let usage = stats.stats.and_then(|stats| stats.linux?.network);
        let eth0 = usage.and_then(|usage| usage.default_interface);
        let eth0 = eth0.context("no figures of traffic")?;
        let host = [eth0.rx_bytes, eth0.tx_bytes].map(|bytes| bytes.unwrap_or_default().value);
        let guest = net.sh(pod, &script)?;
        let guest: Vec<u64> = guest.lines().map(str::parse).collect::<Result<_, _>>()?;
        if guest == host {
            return Ok(host);
        }
        seen.push((host, guest));
    }
    anyhow::bail!("host and guest count otherwise: {seen:?}")
}

/// User of a mesh's own proxy, whose traffic is not redirected.
const PROXY: i64 = 1337;

/// An init container redirects what comes and what goes, as a service mesh's does: by
/// iptables-nft, rule by rule and restored, for both families, and by nft. It has
/// rights over the network only.
pub(super) fn mesh_rules() -> anyhow::Result<()> {
    let net = Net::new()?;
    import_tools(&net)?;
    let (config, pod) = mesh(&net)?;
    let Pod { id, ip, ip6, .. } = &pod;
    for page in [
        format!("{ip}:80/page"),
        format!("{ip}:81/page"),
        format!("{ip}:82/page"),
        format!("{ip}:8080/page"),
        format!("[{ip6}]:80/page"),
    ] {
        let got = net.page(&page)?;
        ensure!(got == "mesh", "{page}: {got}");
    }
    // What goes out reaches the proxy, but for the proxy's own.
    let ask = "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 10.88.0.1 90";
    let got = net.sh(&pod, ask)?;
    ensure!(got.ends_with("mesh\n"), "{got}");
    let mut proxy = container_config("proxy", ask);
    proxy.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: PROXY }),
            ..v1::LinuxContainerSecurityContext::default()
        }),
        ..v1::LinuxContainerConfig::default()
    });
    let proxy = net.cri.create(id, proxy, &config)?;
    net.cri.start(&proxy)?;
    ensure!(net.cri.ended(&proxy)?.exit_code != 0);
    net.cri.remove_pod(id)?;
    Ok(())
}

/// A pod whose init container sends several ports to 8080.
fn mesh(net: &Net) -> anyhow::Result<(v1::PodSandboxConfig, Pod)> {
    let mut config = net.config("mesh");
    config.hostname = "mesh".into();
    let mut init = container_config(
        "init",
        &format!(
            "set -e
             redirect='-j REDIRECT --to-ports 8080'
             iptables-nft -t nat -N MESH
             iptables-nft -t nat -A MESH -p tcp $redirect
             iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j MESH
             ip6tables-nft -t nat -A PREROUTING -p tcp --dport 80 $redirect
             printf '*nat\\n-A PREROUTING -p tcp --dport 82 %s\\nCOMMIT\\n' \"$redirect\" |
                 iptables-nft-restore --noflush
             iptables-nft -t nat -A OUTPUT -p tcp -m owner --uid-owner {PROXY} -j RETURN
             iptables-nft -t nat -A OUTPUT -p tcp --dport 90 ! -d 127.0.0.1/32 -j MESH
             nft add table inet mesh
             nft add chain inet mesh in '{{ type nat hook prerouting priority -100; }}'
             nft add rule inet mesh in tcp dport 81 redirect to :8080
             iptables-nft -t nat -S; nft list ruleset"
        ),
    );
    init.image = Some(image(TOOLS));
    let capabilities = ["NET_ADMIN", "NET_RAW"].map(str::to_owned).to_vec();
    init.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            capabilities: Some(v1::Capability {
                add_capabilities: capabilities,
                drop_capabilities: vec!["ALL".into()],
                ..v1::Capability::default()
            }),
            ..v1::LinuxContainerSecurityContext::default()
        }),
        ..v1::LinuxContainerConfig::default()
    });
    let id = net.cri.run(&config)?;
    let init = net.cri.create(&id, init, &config)?;
    net.cri.start(&init)?;
    let ended = net.cri.ended(&init)?;
    let log = std::fs::read_to_string(net.daemon.dir().join("init.log"));
    ensure!(ended.exit_code == 0, "{ended:?}: {log:?}");
    let page = "echo $HOSTNAME > /www/page; exec httpd -f -p [::]:8080 -h /www";
    let container = net.cri.create(&id, container_config("c", page), &config)?;
    net.cri.start(&container)?;
    let network = net.cri.sandbox(&id)?.network.context("no network")?;
    let ip6 = network.additional_ips.first().context("no IPv6")?;
    let pod = Pod {
        id,
        container,
        ip: network.ip,
        ip6: ip6.ip.clone(),
    };
    Ok((config, pod))
}

/// The busybox image with this machine's iptables-nft and nft.
fn import_tools(net: &Net) -> anyhow::Result<()> {
    let programs = ["/usr/sbin/xtables-nft-multi", "/usr/sbin/nft"];
    let mut files: BTreeSet<PathBuf> = programs.into_iter().map(PathBuf::from).collect();
    for extension in std::fs::read_dir("/usr/lib/x86_64-linux-gnu/xtables")? {
        files.insert(extension?.path());
    }
    for program in programs {
        let output = Command::new("ldd").arg(program).output()?;
        for word in String::from_utf8(output.stdout)?.split_whitespace() {
            if word.starts_with('/') {
                files.insert(word.into());
            }
        }
    }
    let mut layer = Layer::default();
    let mut dirs = BTreeSet::new();
    for file in &files {
        for dir in file.ancestors().skip(1) {
            if dir != Path::new("/") {
                dirs.insert(dir.strip_prefix("/")?.to_owned());
            }
        }
    }
    for dir in dirs {
        layer = layer.dir(dir.to_str().context("a plain name")?, 0o755)?;
    }
    for file in &files {
        let name = file.strip_prefix("/")?.to_str().context("a plain name")?;
        layer = layer.file(name, 0o755, &std::fs::read(file)?)?;
    }
    layer = layer
        .symlink("bin/iptables-nft", "/usr/sbin/xtables-nft-multi")?
        .symlink("bin/ip6tables-nft", "/usr/sbin/xtables-nft-multi")?
        .symlink("bin/iptables-nft-restore", "/usr/sbin/xtables-nft-multi")?
        .symlink("bin/nft", "/usr/sbin/nft")?;
    let image = busybox_image(TOOLS)?.layer(layer.into_bytes()?, Compression::Gzip);
    let archive = net.daemon.dir().join("tools.tar");
    std::fs::write(&archive, image.archive()?)?;
    let archive = archive.to_str().context("a plain name")?;
    net.daemon.cli(["import", archive])?.ok()?;
    Ok(())
}
