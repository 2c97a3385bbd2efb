//! Networks that cannot be had, and plugins that fail.

use super::{Net, wait_for};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::json;
use spherule_tests::Host;
use spherule_tests::cri::{Cri, refused};
use spherule_tests::manifest::one;
use tonic::Code;

/// A list of one plugin.
fn list(name: &str, plugin: &str) -> serde_json::Value {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": plugin}]})
}

pub(super) fn none() -> anyhow::Result<()> {
    let net = Net::on(Host::new()?, &[])?;
    let ready = || network_ready(&net.cri);
    let remedy = "spherule network init";
    let condition = ready()?;
    ensure!(
        !condition.status && condition.message.contains(remedy),
        "{condition:?}"
    );
    let dir = net.host.dir().join("net.d").display().to_string();
    refused(
        net.cri.run(&net.config("none")),
        Code::Unavailable,
        &[&dir, remedy],
    )?;
    net.daemon
        .run(&one("own", "true", json!({})))?
        .refused(&[&dir, remedy])?;
    let info = net.daemon.cli(["info"])?.ok()?;
    ensure!(info.contains("Network:  not ready"), "{info}");

    // What the network does not do is refused, not left out.
    net.host.write_list(
        "00-plain.conflist",
        &json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [{"type": "bridge"}]}),
    )?;
    let ports = json!({"ports": [{"containerPort": 80, "hostPort": 8080}]});
    let ports = spherule_tests::manifest::container("c", "true", ports);
    net.daemon
        .run(&spherule_tests::manifest::pod("ports", &[ports], json!({})))?
        .refused(&["portMappings", "plain"])?;
    std::fs::remove_file(net.host.dir().join("net.d/00-plain.conflist"))?;

    // Without a restart.
    let said = net.host.init(&[])?;
    ensure!(said.contains("10-spherule.conflist written"), "{said}");
    let condition = ready()?;
    ensure!(condition.status, "{condition:?}");
    let again = net.host.init(&["--bridge", "other0"]);
    let refusal = again.err().context("it was overwritten")?.to_string();
    ensure!(refusal.contains("--force"), "{refusal}");
    net.host.init(&["--bridge", "other0", "--force"])?;

    fabric(
        &net.host,
        r#"echo '{"code": 50, "msg": "the fabric is down"}'; exit 1"#,
    )?;
    let condition = ready()?;
    ensure!(
        !condition.status && condition.message.contains("the fabric is down"),
        "{condition:?}"
    );
    Ok(())
}

/// The condition as a kubelet asks for it.
fn network_ready(cri: &Cri) -> anyhow::Result<v1::RuntimeCondition> {
    let request = v1::StatusRequest::default();
    let status = cri.wait(cri.runtime.clone().status(request))?;
    let mut conditions = status.status.unwrap_or_default().conditions.into_iter();
    let network = conditions.find(|c| c.r#type == "NetworkReady");
    network.context("no condition")
}

/// A network of one plugin of CNI 1.1, which is asked for its status itself: by the
/// shell script `status`.
fn fabric(host: &Host, status: &str) -> anyhow::Result<()> {
    let version = r#"{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}"#;
    host.write_plugin(
        "fabric",
        &format!("test $CNI_COMMAND = VERSION && echo '{version}' || {{ {status}; }}"),
    )?;
    let mut fabric = list("fabric", "fabric");
    fabric["cniVersion"] = "1.1.0".into();
    host.write_list("05-fabric.conflist", &fabric)
}

/// A plugin hangs on STATUS, and may for an hour: the kubelet gets an answer all the
/// same.
pub(super) fn hanging_status() -> anyhow::Result<()> {
    let net = Net::on(Host::new()?, &["--cni-timeout", "1h"])?;
    let there = net.host.dir().join("there");
    fabric(
        &net.host,
        &format!("touch {}; exec sleep 1000", there.display()),
    )?;
    let socket = net.socket();
    let call = std::thread::spawn(move || network_ready(&Cri::at(&socket)?));
    wait_for(&there)?;
    // Whoever asks for something else meanwhile is answered.
    refused(net.cri.sandbox("nobody"), Code::NotFound, &["nobody"])?;
    let condition = call.join().expect("no panic")?;
    let told = &condition.message;
    ensure!(!condition.status, "{condition:?}");
    ensure!(told.contains("fabric") && told.contains("STATUS"), "{told}");
    Ok(())
}

pub(super) fn add() -> anyhow::Result<()> {
    let net = Net::on(Host::new()?, &["--cni-timeout", "3s"])?;
    let before = net.remains()?;
    let failure =
        r#"echo '{"code": 11, "msg": "no address is left", "details": "pool a"}'; exit 1"#;
    let cases: [(&str, Option<&str>, &[&str]); 5] = [
        ("fails", Some(failure), &["no address is left", "pool a"]),
        ("hangs", Some("exec sleep 1000"), &["hangs", "3"]),
        ("lies", Some("echo nonsense"), &["lies"]),
        // It says that it has made an interface, and has not.
        (
            "idles",
            Some(r#"echo '{"cniVersion": "1.0.0"}'"#),
            &["eth0"],
        ),
        ("missing", None, &["missing", "/usr/lib/cni"]),
    ];
    for (name, script, words) in cases {
        if let Some(script) = script {
            // DEL has to work, or it would be tried again for ever.
            let script = format!("test $CNI_COMMAND = ADD || exit 0; {script}");
            net.host.write_plugin(name, &script)?;
        }
        net.host.write_list("10-test.conflist", &list(name, name))?;
        refused(net.cri.run(&net.config(name)), Code::Unavailable, words)?;
        if script.is_some() {
            net.ensure_clean(&before)?;
        }
    }
    Ok(())
}

/// A plugin fails on DEL for a while: once, so that the stop itself tries it again;
/// then until its cause is gone, and every stop says so.
pub(super) fn del() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let dir = net.host.dir().display().to_string();
    let plugin = |condition: &str| {
        format!(
            r#"if test "$CNI_COMMAND" = DEL && {condition}; then
                 echo '{{"code": 11, "msg": "the switch does not answer"}}'; exit 1
               fi; exec /usr/lib/cni/bridge"#
        )
    };
    net.host
        .write_plugin("bridge", &plugin(&format!("mkdir {dir}/once 2>/dev/null")))?;
    let id = net.cri.run(&net.config("once"))?;
    net.cri.stop_pod(&id)?;
    net.ensure_clean(&before)?;
    net.cri.remove_pod(&id)?;

    net.host
        .write_plugin("bridge", &plugin(&format!("test -e {dir}/broken")))?;
    std::fs::write(net.host.dir().join("broken"), "")?;
    let id = net.cri.run(&net.config("often"))?;
    for _ in 0..2 {
        refused(
            net.cri.stop_pod(&id),
            Code::Unavailable,
            &["the switch does not answer"],
        )?;
    }
    refused(
        net.cri.remove_pod(&id),
        Code::Unavailable,
        &["the switch does not answer"],
    )?;
    std::fs::remove_file(net.host.dir().join("broken"))?;
    net.cri.remove_pod(&id)?;
    net.ensure_clean(&before)
}

/// The list changes while a pod runs: the pod goes by the one it came by, the next
/// one comes by the new one.
pub(super) fn changed() -> anyhow::Result<()> {
    let net = Net::new()?;
    let before = net.remains()?;
    let old = net.cri.run(&net.config("old"))?;
    net.host.init(&[
        "--ipv4",
        "10.99.0.0/24",
        "--ipv6",
        "none",
        "--bridge",
        "other0",
        "--force",
    ])?;
    let new = net.cri.run(&net.config("new"))?;
    let ip = |id: &str| -> anyhow::Result<String> {
        Ok(net.cri.sandbox(id)?.network.context("no network")?.ip)
    };
    ensure!(ip(&old)?.starts_with("10.88.0."), "{}", ip(&old)?);
    ensure!(ip(&new)?.starts_with("10.99.0."), "{}", ip(&new)?);
    for id in [old, new] {
        net.cri.remove_pod(&id)?;
    }
    net.host.sh("ip link del other0")?;
    net.ensure_clean(&before)
}

/// A list that leaves ranges, names and resolvers to the runtime: the kubelet tells
/// the ranges, once, and the others come with the pod.
pub(super) fn capabilities() -> anyhow::Result<()> {
    let mut net = Net::on(Host::new()?, &[])?;
    let before = net.remains()?;
    let log = net.host.dir().join("told");
    // It makes nothing: what comes after it does.
    let script = format!(
        r#"test $CNI_COMMAND = ADD || exit 0
           cat > {}; echo '{{"cniVersion": "1.0.0"}}'"#,
        log.display()
    );
    net.host.write_plugin("logs", &script)?;
    let leases = net.host.dir().join("leases");
    net.host.write_list(
        "10-ranges.conflist",
        &json!({"cniVersion": "1.0.0", "name": "spherule", "plugins": [
            {"type": "logs", "capabilities": {"dns": true, "aliases": true}},
            {"type": "bridge", "bridge": "spherule0", "isGateway": true,
                "capabilities": {"ipRanges": true},
                "ipam": {"type": "host-local", "dataDir": leases}},
        ]}),
    )?;
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: "10.77.5.0/24,fd77:5::/64".into(),
            }),
        }),
    };
    net.cri
        .wait(net.cri.runtime.clone().update_runtime_config(request))?;
    net.daemon.kill()?;
    net.daemon.restart()?;
    net.cri = Cri::connect(&net.daemon)?;
    let mut config = net.config("ranged");
    config.hostname = "web".into();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.0.0.53".into()],
        ..v1::DnsConfig::default()
    });
    let id = net.cri.run(&config)?;
    let network = net.cri.sandbox(&id)?.network.context("no network")?;
    let ips = [&network.ip, &network.additional_ips[0].ip];
    ensure!(
        ips[0].starts_with("10.77.5.") && ips[1].starts_with("fd77:5::"),
        "{ips:?}"
    );
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&log)?)?;
    let expected = json!({"aliases": ["web"], "dns": {"servers": ["10.0.0.53"]}});
    ensure!(told["runtimeConfig"] == expected, "{told:#}");
    net.cri.remove_pod(&id)?;
    net.ensure_clean(&before)
}
