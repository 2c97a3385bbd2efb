//! Ports of the node, and what our own API says of a pod's network.

use super::Net;
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::json;
use spherule_tests::cri::container_config;
use spherule_tests::manifest::{container, pod};

const PAGE: &str = "echo $HOSTNAME > /www/page; exec httpd -f -p 80 -h /www";

/// A pod takes a port, by both families; when it is gone another can take it, and no
/// rule of the first is left.
pub(super) fn host_ports() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    for name in ["first", "second"] {
        let mut config = net.config(name);
        config.hostname = name.to_owned();
        config.port_mappings = vec![v1::PortMapping {
            container_port: 80,
            host_port: 12080,
            ..v1::PortMapping::default()
        }];
        let pod = net.pod_with(&config, container_config("c", PAGE))?;
        for at in [
            &format!("{}:80", pod.ip),
            "127.0.0.1:12080",
            "10.88.0.1:12080",
            "[fd88:5f3e::1]:12080",
        ] {
            let page = net.page(&format!("{at}/page"))?;
            ensure!(page == name, "{at}: {page}");
        }
        net.cri.stop_pod(&pod.id)?;
        net.ensure_clean(&before)?;
        net.cri.remove_pod(&pod.id)?;
    }
    Ok(())
}

pub(super) fn own_pod() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let script = "cat /etc/hosts /etc/resolv.conf > /www/page; exec httpd -f -p 80 -h /www";
    let manifest = pod(
        "web",
        &[container(
            "c",
            script,
            json!({"ports": [{"containerPort": 80, "hostPort": 8080}]}),
        )],
        json!({
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["10.88.0.1"], "options": [{"name": "ndots", "value": "2"}]},
            "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["db", "db.local"]}],
        }),
    );
    net.daemon.run_detached(&manifest)?;
    let page = net.page("10.88.0.1:8080/page")?;
    let shown = net.daemon.inspect("web")?;
    let ips = shown["podIps"].as_array().context("no podIps")?;
    let ip = ips[0].as_str().context("no address")?;
    ensure!(ips.len() == 2, "{shown:#}");
    for line in [
        &format!("{ip}\tweb"),
        "10.9.9.9\tdb db.local",
        "nameserver 10.88.0.1",
        "options ndots:2",
    ] {
        ensure!(page.lines().any(|l| l == line), "no {line:?}: {page}");
    }
    let stages = shown["stages"].as_array().context("no stages")?;
    ensure!(stages.iter().any(|s| s["name"] == "network"), "{stages:?}");
    net.daemon.cli(["stop", "--grace", "0", "web"])?.ok()?;
    net.ensure_clean(&before)?;
    let shown = net.daemon.inspect("web")?;
    ensure!(
        shown["podIps"].as_array().is_none_or(Vec::is_empty),
        "{shown:#}"
    );

    // It is said while it runs, and on standard error: the output is the pod's.
    let ran = net.daemon.run(&spherule_tests::manifest::one(
        "short",
        "echo hi",
        json!({}),
    ))?;
    ensure!(ran.stderr.contains("pod short: 10.88."), "{ran}");
    ensure!(ran.ok()? == "[c] hi\n");
    Ok(())
}
