//! Rules of the guest, packet sizes, rates.

use super::{Net, Pod, privileged};
use anyhow::{Context, ensure};
use spherule_tests::Host;
use spherule_tests::cri::{container_config, image};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use test_images::{Compression, Layer, busybox_image};

const TOOLS: &str = "localhost/nft:test";

/// Jumbo frames pass whole; a pod whose annotations limit it has its queues shaped.
pub(super) fn mtu_and_rates() -> anyhow::Result<()> {
    let host = Host::new()?;
    host.init(&["--mtu", "9000"])?;
    let net = Net::on(host, &[])?;
    let mut config = net.config("limited");
    config
        .annotations
        .insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
    let pod = net.pod_with(&config, container_config("c", "exec sleep 1000"))?;
    let link = net.sh(&pod, "ip link show eth0")?;
    ensure!(link.contains("mtu 9000"), "{link}");
    // 8972 bytes and the headers are 9000; nothing takes it in pieces.
    let ping = format!("busybox ping -c 2 -W 10 -s 8972 {}", pod.ip);
    net.host.sh(&ping)?;
    let queues = net.host.sh("tc qdisc show")?;
    ensure!(
        queues.contains("tbf") && queues.contains("10Mbit"),
        "{queues}"
    );
    net.cri.remove_pod(&pod.id)?;
    let queues = net.host.sh("tc qdisc show")?;
    ensure!(!queues.contains("tbf"), "{queues}");
    Ok(())
}

/// A privileged init container redirects ports, as a service mesh's does, by
/// iptables-nft and by nft.
pub(super) fn mesh_rules() -> anyhow::Result<()> {
    let net = Net::new()?;
    import_tools(&net)?;
    let page = "echo $HOSTNAME > /www/page; exec httpd -f -p 8080 -h /www";
    let server = mesh(&net, page)?;
    for port in [80, 81, 8080] {
        let page = net.page(&format!("{}:{port}/page", server.ip))?;
        ensure!(page == "mesh", "port {port}: {page}");
    }
    net.cri.remove_pod(&server.id)?;
    Ok(())
}

/// A pod whose privileged init container sends ports 80 and 81 to 8080.
fn mesh(net: &Net, script: &str) -> anyhow::Result<Pod> {
    let mut config = net.config("mesh");
    config.hostname = "mesh".into();
    let mut init = container_config(
        "init",
        "set -e
         iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080
         nft add table inet mesh
         nft add chain inet mesh in '{ type nat hook prerouting priority -100; }'
         nft add rule inet mesh in tcp dport 81 redirect to :8080
         iptables-nft -t nat -S; nft list ruleset",
    );
    init.image = Some(image(TOOLS));
    privileged(&mut config, &mut init);
    let id = net.cri.run(&config)?;
    let init = net.cri.create(&id, init, &config)?;
    net.cri.start(&init)?;
    let ended = net.cri.ended(&init)?;
    let log = std::fs::read_to_string(net.daemon.dir().join("init.log"));
    ensure!(ended.exit_code == 0, "{ended:?}: {log:?}");
    let container = net
        .cri
        .create(&id, container_config("c", script), &config)?;
    net.cri.start(&container)?;
    let network = net.cri.sandbox(&id)?.network.context("no network")?;
    Ok(Pod {
        id,
        container,
        ip: network.ip,
        ip6: String::new(),
    })
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
        .symlink("bin/nft", "/usr/sbin/nft")?;
    let image = busybox_image(TOOLS)?.layer(layer.into_bytes()?, Compression::Gzip);
    let archive = net.daemon.dir().join("tools.tar");
    std::fs::write(&archive, image.archive()?)?;
    let archive = archive.to_str().context("a plain name")?;
    net.daemon.cli(["import", archive])?.ok()?;
    Ok(())
}
