//! Pods on a network that real CNI plugins make, on hosts of the tests' own.

use crate::Test;
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{Cri, sandbox_config};
use spherule_tests::{Daemon, Host};
use std::sync::Arc;

pub(crate) const TESTS: &[Test] = &[(
    "cri_pod_has_addresses_that_the_host_reaches_until_it_stops",
    addresses,
)];

fn addresses() -> anyhow::Result<()> {
    let host = Arc::new(Host::with_network()?);
    let daemon = Daemon::on(&host)?;
    // The bridge stays once it was made.
    host.sh("ip link add spherule0 type bridge")?;
    let before = host.remains(&daemon.run_dir())?;
    let cri = Cri::connect(&daemon)?;
    let status = cri.wait(cri.runtime.clone().status(v1::StatusRequest::default()))?;
    let conditions = status.status.unwrap_or_default().conditions;
    ensure!(conditions.iter().all(|c| c.status), "{conditions:?}");

    let pod = cri.run(&sandbox_config("pinged", daemon.dir()))?;
    let network = cri.sandbox(&pod)?.network.context("no network")?;
    let ipv6 = network
        .additional_ips
        .first()
        .context("no second address")?;
    for ip in [&network.ip, &ipv6.ip] {
        host.sh(&format!("busybox ping -c 3 -W 10 {ip}"))?;
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

    cri.stop_pod(&pod)?;
    ensure!(cri.sandbox(&pod)?.network.is_none(), "an address stays");
    let after = host.remains(&daemon.run_dir())?;
    ensure!(before == after, "left: {after:#?}\nbefore: {before:#?}");
    cri.remove_pod(&pod)?;
    Ok(())
}
