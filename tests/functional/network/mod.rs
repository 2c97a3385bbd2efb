//! Pods on a network that real CNI plugins make, on hosts of the tests' own.

mod failures;
mod killed;
mod ports;
mod reach;
mod rules;
mod services;
mod several;

use crate::Test;
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{Cri, container_config, image, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions, Host, PEER_IMAGE};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "cri_pod_has_addresses_that_the_host_reaches_until_it_stops",
        reach::addresses,
    ),
    ("pods_hosts_and_nodes_reach_each_other", reach::everybody),
    ("pods_at_once_have_addresses_of_their_own", reach::many),
    (
        "interfaces_that_the_result_leaves_out_are_the_guests_too",
        several::interfaces,
    ),
    (
        "a_guest_cannot_send_from_addresses_of_others",
        reach::spoofing,
    ),
    (
        "host_ports_lead_to_pods_and_are_free_again",
        ports::host_ports,
    ),
    ("own_pods_have_ports_names_and_aliases", ports::own_pod),
    (
        "without_a_network_pods_are_refused_with_the_remedy",
        failures::none,
    ),
    ("a_status_that_hangs_is_told_of", failures::hanging_status),
    ("an_add_that_fails_leaves_nothing", failures::add),
    ("a_del_that_fails_is_tried_again", failures::del),
    (
        "plugins_get_what_they_declare_capabilities_for",
        failures::capabilities,
    ),
    (
        "a_network_goes_by_the_configuration_it_came_by",
        failures::changed,
    ),
    (
        "daemon_killed_during_add_leaves_nothing",
        killed::during_add,
    ),
    (
        "daemon_killed_before_the_boot_leaves_nothing",
        killed::before_boot,
    ),
    (
        "daemon_killed_during_del_leaves_nothing",
        killed::during_del,
    ),
    (
        "daemon_killed_beside_a_pod_finds_its_network",
        killed::beside,
    ),
    ("a_plugin_that_hangs_holds_up_no_start", killed::hanging_del),
    (
        "a_half_made_pod_that_cannot_be_undone_is_there_to_be_removed",
        killed::half_made,
    ),
    (
        "the_end_of_a_vm_is_told_before_its_network_is_gone",
        killed::told_before_del,
    ),
];

/// What needs nft besides.
pub(crate) const RULES: &[Test] = &[
    (
        "large_packets_limited_rates_and_figures_of_traffic",
        rules::mtu_rates_and_figures,
    ),
    (
        "init_containers_redirect_ports_of_their_pod",
        rules::mesh_rules,
    ),
    (
        "services_and_policies_of_the_host_hold_for_pods",
        services::as_kube_proxy,
    ),
];

/// Needs dnsmasq.
pub(crate) const NAMES: &[Test] = &[("names_are_resolved_by_a_server_of_the_host", reach::names)];

/// What takes minutes.
pub(crate) const LONG: &[Test] = &[
    ("a_gibibyte_arrives_as_it_was_sent", reach::gibibyte),
    (
        "twenty_pods_at_once_have_addresses_of_their_own",
        reach::twenty,
    ),
];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(180);

/// A host, the daemon on it, and its CRI.
struct Net {
    cri: Cri,
    daemon: Daemon,
    host: Arc<Host>,
}

/// A running pod.
struct Pod {
    id: String,
    container: String,
    ip: String,
    ip6: String,
}

impl Net {
    /// With the default network.
    fn new() -> anyhow::Result<Self> {
        Self::on(Host::with_network()?, &[])
    }

    /// On a host, the daemon with more arguments.
    fn on(host: Host, args: &[&str]) -> anyhow::Result<Self> {
        let host = Arc::new(host);
        let daemon = Daemon::with(DaemonOptions {
            host: Some(Arc::clone(&host)),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..DaemonOptions::default()
        })?;
        Self::of(host, daemon)
    }

    fn of(host: Arc<Host>, daemon: Daemon) -> anyhow::Result<Self> {
        Ok(Self {
            cri: Cri::connect(&daemon)?,
            daemon,
            host,
        })
    }

    fn socket(&self) -> PathBuf {
        self.daemon.run_dir().join("cri.sock")
    }

    fn config(&self, name: &str) -> v1::PodSandboxConfig {
        sandbox_config(name, self.daemon.dir())
    }

    /// A pod with one container.
    fn pod_with(
        &self,
        config: &v1::PodSandboxConfig,
        container: v1::ContainerConfig,
    ) -> anyhow::Result<Pod> {
        let id = self.cri.run(config)?;
        let network = self.cri.sandbox(&id)?.network.context("no address")?;
        let container = self.cri.create(&id, container, config)?;
        self.cri.start(&container)?;
        Ok(Pod {
            id,
            container,
            ip: network.ip,
            ip6: network
                .additional_ips
                .first()
                .map_or(String::new(), |ip| ip.ip.clone()),
        })
    }

    /// A pod whose container runs a script, of the image that has `peer`.
    fn peer_pod(&self, name: &str, script: &str) -> anyhow::Result<Pod> {
        self.peer_pod_with(&self.config(name), script)
    }

    fn peer_pod_with(&self, config: &v1::PodSandboxConfig, script: &str) -> anyhow::Result<Pod> {
        let mut container = container_config("c", script);
        container.image = Some(image(PEER_IMAGE));
        self.pod_with(config, container)
    }

    /// Runs a script in a pod, which has to succeed; its output.
    fn sh(&self, pod: &Pod, script: &str) -> anyhow::Result<String> {
        self.sh_within(pod, script, 60)
    }

    /// [`Self::sh`] for so many seconds at most.
    fn sh_within(&self, pod: &Pod, script: &str, timeout: i64) -> anyhow::Result<String> {
        let command = ["sh", "-ec", script];
        let ran = self.cri.exec_within(&pod.container, &command, timeout)?;
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(
            ran.exit_code == 0,
            "{script}: {}: {output}{said}",
            ran.exit_code
        );
        Ok(output)
    }

    /// A page as the host gets it, as text without the end of its line.
    fn page(&self, page: &str) -> anyhow::Result<String> {
        let page = self.host.get(None, page)?;
        Ok(String::from_utf8_lossy(&page).trim_end().to_owned())
    }

    /// What pods may leave behind. The bridge stays once it was made.
    fn remains(&self) -> anyhow::Result<Vec<String>> {
        let mut all = self.host.remains(&self.daemon.run_dir())?;
        all.retain(|line| line != "link spherule0");
        Ok(all)
    }

    /// Waits until nothing is left of any pod but what was there.
    fn wait_clean(&self, before: &[String]) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.remains()? != before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.ensure_clean(before)
    }

    /// Nothing is left of any pod but what was there.
    fn ensure_clean(&self, before: &[String]) -> anyhow::Result<()> {
        let after = self.remains()?;
        ensure!(before == after, "left: {after:#?}\nbefore: {before:#?}");
        Ok(())
    }
}

/// Waits for a file that a plugin makes.
fn wait_for(path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Gives a container of a pod all rights in its guest.
fn privileged(config: &mut v1::PodSandboxConfig, container: &mut v1::ContainerConfig) {
    config.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            privileged: true,
            ..v1::LinuxSandboxSecurityContext::default()
        }),
        ..v1::LinuxPodSandboxConfig::default()
    });
    container.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: true,
            ..v1::LinuxContainerSecurityContext::default()
        }),
        ..v1::LinuxContainerConfig::default()
    });
}
