//! The network of pods, measured in network namespaces of the benchmark's own: pod to
//! host and pod to pod, beside two namespaces over veth in the same run; and what a
//! network adds to a pod's start.

use crate::report::{Collected, Section};
use crate::{AGENT_TIMEOUT, start};
use anyhow::{Context, ensure};
use spherule_tests::manifest::{container, pod};
use spherule_tests::{Daemon, DaemonOptions, Host, PEER_IMAGE, import_peer};
use std::sync::Arc;

/// What an engine can be asked for in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volume {
    /// Bytes of one transfer.
    bytes: u64,
    /// Requests, each answered before the next.
    requests: u32,
}

impl Volume {
    /// For a guest whose kernel runs by itself, or under QEMU.
    pub(crate) const USUAL: Self = Self {
        bytes: 512 << 20,
        requests: 2000,
    };
    /// For a guest whose kernel is emulated instruction by instruction.
    pub(crate) const TINY: Self = Self {
        bytes: 64 << 10,
        requests: 10,
    };
}

/// Where `peer` serves: the host, and a namespace over veth.
const HOST: &str = "10.88.0.1:7000";
const VETH: &str = "192.0.2.2:7000";

/// Measures transfers between two pods, a pod and its host, and over veth.
pub(crate) fn measure(engine: &str, runs: usize, volume: Volume) -> anyhow::Result<Vec<Section>> {
    let bench = Bench::start(engine)?;
    let (mut throughput, mut latency) = (Collected::default(), Collected::default());
    let (mut ratios, mut cpu) = (Collected::default(), Collected::default());
    for run in 0..=runs {
        eprintln!("network: run {run} of {runs}");
        let (mut sent, mut asked) = (Collected::default(), Collected::default());
        let usual = Volume::USUAL;
        let over_veth = bench.over_veth(&format!("push {VETH} {}", usual.bytes))?;
        let veth_rate = rate(usual.bytes, over_veth[0]);
        let asked_veth = bench.over_veth(&format!("ask {VETH} {}", usual.requests))?;
        let veth_wait = each(asked_veth[0], usual.requests);
        sent.add("two namespaces over veth", veth_rate);
        asked.add("two namespaces over veth", veth_wait);
        let of_server = format!("{}:7000", bench.server_ip);
        for (way, direction, address) in [
            ("pod to host", "push", HOST),
            ("host to pod", "pull", HOST),
            ("pod to pod", "push", of_server.as_str()),
        ] {
            let before = bench.cpu_seconds()?;
            let took = bench.in_client(&[direction, address, &volume.bytes.to_string()])?;
            let spent = bench.cpu_seconds()? - before;
            let rate = rate(volume.bytes, took[0]);
            sent.add(way, rate);
            cpu.add_if(run > 0, way, spent / gib(volume.bytes));
            ratios.add_if(run > 0, &format!("throughput, {way}"), rate / veth_rate);
        }
        for (way, address) in [("pod to host", HOST), ("pod to pod", of_server.as_str())] {
            let took = bench.in_client(&["ask", address, &volume.requests.to_string()])?;
            let wait = each(took[0], volume.requests);
            asked.add(way, wait);
            ratios.add_if(run > 0, &format!("latency, {way}"), wait / veth_wait);
        }
        // The first run warms what is cached.
        if run > 0 {
            throughput.extend(sent);
            latency.extend(asked);
        }
    }
    Ok(vec![
        throughput.section("TCP throughput, MiB/s"),
        latency.section("TCP request and response, mean of a run, µs"),
        ratios.section("ratio to two namespaces over veth in the same run"),
        cpu.section("CPU time of both pods' VMMs, s/GiB"),
    ])
}

struct Bench {
    host: Arc<Host>,
    daemon: Daemon,
    server_ip: String,
    /// The VMMs of both pods and what they started.
    processes: Vec<u64>,
}

impl Bench {
    fn start(engine: &str) -> anyhow::Result<Self> {
        let host = Arc::new(Host::with_network()?);
        host.add_node()?;
        host.serve(None, 7000)?;
        host.serve(Some("node"), 7000)?;
        let daemon = daemon(engine, Some(&host))?;
        import_peer(&daemon)?;
        let mut processes = Vec::new();
        let mut server_ip = String::new();
        for (name, script) in [
            ("client", "echo up; exec sleep 1000000"),
            ("server", "exec peer serve [::]:7000"),
        ] {
            let extra = serde_json::json!({"image": PEER_IMAGE});
            let manifest = pod(
                name,
                &[container("c", script, extra)],
                serde_json::json!({}),
            );
            daemon.run_detached(&manifest)?;
            let pod = start::running(&daemon, name)?;
            server_ip = pod["podIps"][0].as_str().context("podIps")?.to_owned();
            let vmm = pod["vm"]["vmmPid"].as_u64().context("vmmPid")?;
            processes.push(vmm);
            processes.extend(start::children(vmm)?);
        }
        daemon.wait_for_output("server", "serving")?;
        Ok(Self {
            host,
            daemon,
            server_ip,
            processes,
        })
    }

    /// What `peer` says on the host, as numbers.
    fn over_veth(&self, arguments: &str) -> anyhow::Result<Vec<f64>> {
        numbers(&self.host.peer(None, arguments)?)
    }

    /// What `peer` says in the client, as numbers.
    fn in_client(&self, arguments: &[&str]) -> anyhow::Result<Vec<f64>> {
        let command = ["exec", "client", "--", "peer"].into_iter();
        let ran = self.daemon.cli(command.chain(arguments.iter().copied()))?;
        numbers(&ran.ok()?)
    }

    /// CPU time that both pods have cost so far.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.processes.iter().map(|pid| cpu_seconds(*pid)).sum()
    }
}

fn daemon(engine: &str, host: Option<&Arc<Host>>) -> anyhow::Result<Daemon> {
    Daemon::with(DaemonOptions {
        engine: engine.into(),
        host: host.map(Arc::clone),
        args: AGENT_TIMEOUT.map(str::to_owned).to_vec(),
        ..DaemonOptions::default()
    })
}

/// Starts pods with and without a network in turn, and reads the stages that the
/// daemon recorded.
pub(crate) fn start_with_and_without(engine: &str, runs: usize) -> anyhow::Result<Vec<Section>> {
    let host = Arc::new(Host::with_network()?);
    let with = daemon(engine, Some(&host))?;
    let without = daemon(engine, None)?;
    let mut figures = Collected::default();
    for run in 0..=runs {
        eprintln!("network: start {run} of {runs}");
        let (alone, _) = to_running(&without)?;
        let (networked, network) = to_running(&with)?;
        if run > 0 {
            figures.add("container started, no network", alone);
            figures.add("container started, with a network", networked);
            figures.add("difference of the two", networked - alone);
            figures.add("the CNI plugins, beside other work", network);
        }
    }
    Ok(vec![
        figures.section("what a network adds to a pod's start, ms"),
    ])
}

/// Runs a pod until its container has started: milliseconds since it was accepted,
/// and those of the stage "network".
fn to_running(daemon: &Daemon) -> anyhow::Result<(f64, f64)> {
    let id = daemon.run_detached(start::MANIFEST)?;
    let pod = start::running(daemon, &id)?;
    let accepted = pod["createdAtNs"].as_i64().context("createdAtNs")?;
    let (mut last, mut network) = (accepted, 0);
    for stage in pod["stages"].as_array().context("stages")? {
        let started = stage["startedAtNs"].as_i64().context("startedAtNs")?;
        let took = stage["durationNs"].as_i64().context("durationNs")?;
        last = last.max(started + took);
        if stage["name"] == "network" {
            network = took;
        }
    }
    daemon.cli(["rm", "--force", &id])?.ok()?;
    Ok((start::to_ms(last - accepted), start::to_ms(network)))
}

fn numbers(text: &str) -> anyhow::Result<Vec<f64>> {
    let words = text.split_whitespace().map(str::parse);
    let numbers: Vec<f64> = words.collect::<Result<_, _>>().context(text.to_owned())?;
    ensure!(!numbers.is_empty(), "peer said nothing");
    Ok(numbers)
}

/// MiB a second.
fn rate(bytes: u64, nanoseconds: f64) -> f64 {
    1024.0 * gib(bytes) / (nanoseconds / 1e9)
}

#[expect(clippy::cast_precision_loss, reason = "whole KiB below 2^53")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Microseconds that each of so many took, of nanoseconds in all.
fn each(nanoseconds: f64, count: u32) -> f64 {
    nanoseconds / f64::from(count) / 1e3
}

/// CPU time of a process, from proc_pid_stat(5).
fn cpu_seconds(pid: u64) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).context(path)?;
    let fields = stat.rsplit_once(") ").context("no name")?.1;
    // utime and stime are the 14th and 15th of all; the name is the second.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u32 = ticks.map(str::parse::<u32>).sum::<Result<_, _>>()?;
    // USER_HZ is 100 on x86-64.
    Ok(f64::from(ticks) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_units_they_claim() {
        assert_eq!(rate(512 << 20, 2e9), 256.0);
        assert_eq!(each(6e6, 2000), 3.0);
        assert!(cpu_seconds(u64::from(std::process::id())).unwrap() < 1000.0);
        assert!(numbers("12 x").is_err() && numbers("").is_err());
    }
}
