//! kill -9 of each process, and what the next start finds.

use crate::Test;
use crate::lifecycle::processes_naming;
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use spherule_tests::Daemon;
use spherule_tests::manifest::{container, one, pod};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("pods_outlive_a_killed_daemon", daemon_killed),
    (
        "exit_and_output_of_the_daemons_absence_are_found",
        ended_meanwhile,
    ),
    ("killed_vmm_fails_the_pod_and_leaves_nothing", vmm_killed),
    (
        "vmm_killed_in_the_daemons_absence_is_found",
        vmm_killed_meanwhile,
    ),
    (
        "daemon_killed_while_a_pod_starts_puts_it_right",
        killed_while_starting,
    ),
];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn running(pod: &Value) -> bool {
    pod["containers"][0]["state"] == "STATE_RUNNING"
}

pub(crate) fn vmm_pid(pod: &Value) -> anyhow::Result<Pid> {
    let pid = pod["vm"]["vmmPid"].as_i64().context("vmmPid")?;
    Pid::from_raw(i32::try_from(pid)?).context("a process id")
}

fn daemon_killed() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
    daemon.run_detached(&one("ticker", script, json!({})))?;
    let before = daemon.wait_for("ticker", "running", running)?;
    daemon.kill()?;
    daemon.restart()?;
    let after = daemon.wait_for("ticker", "running", running)?;
    ensure!(
        before["vm"]["vmmPid"] == after["vm"]["vmmPid"],
        "another VM:\n{before:#}\n{after:#}"
    );
    ensure!(
        before["containers"][0]["id"] == after["containers"][0]["id"],
        "{after:#}"
    );
    daemon.cli(["stop", "--grace", "0", "ticker"])?.ok()?;
    let logs = daemon.cli(["logs", "ticker"])?.ok()?;
    for (n, line) in logs.lines().enumerate() {
        ensure!(line == format!("tick {}", n + 1), "line {n} is {line:?}");
    }
    Ok(())
}

fn ended_meanwhile() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let script = "until test -e /tmp/go; do sleep 0.2; test $((n=n+1)) -ge 10 && break; done; echo last words; exit 6";
    daemon.run_detached(&one("meanwhile", script, json!({})))?;
    daemon.wait_for("meanwhile", "running", running)?;
    daemon.kill()?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    daemon.restart()?;
    let pod = daemon.wait_for("meanwhile", "ended", |p| p["phase"] == "PHASE_FAILED")?;
    ensure!(pod["containers"][0]["exitCode"] == 6, "{pod:#}");
    ensure!(daemon.cli(["logs", "meanwhile"])?.ok()? == "last words\n");
    Ok(())
}

fn vmm_killed() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    daemon.run_detached(&one("victim", "echo up; exec sleep 1000", json!({})))?;
    let pod = daemon.wait_for("victim", "running", running)?;
    kill_process(vmm_pid(&pod)?, Signal::KILL)?;
    let pod = daemon.wait_for("victim", "failed", |p| p["phase"] == "PHASE_FAILED")?;
    ensure!(
        pod["containers"][0]["state"] == "STATE_TERMINATED",
        "{pod:#}"
    );
    ensure!(
        pod["message"].as_str().is_some_and(|m| !m.is_empty()),
        "no cause: {pod:#}"
    );
    daemon.cli(["rm", "victim"])?.ok()?;
    let left = processes_naming(&daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn vmm_killed_meanwhile() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let containers = [
        container("victim", "echo up; exec sleep 1000", json!({})),
        // Ends while no daemon runs (on a very slow machine, before), and nobody asks
        // the agent before the VM ends.
        container("ends", "sleep 2; exit 6", json!({})),
    ];
    daemon.run_detached(&pod("victim", &containers, json!({})))?;
    let pod = daemon.wait_for("victim", "running", |pod| {
        let state = &pod["containers"][1]["state"];
        running(pod) && (state == "STATE_RUNNING" || state == "STATE_TERMINATED")
    })?;
    daemon.kill()?;
    let id = pod["id"].as_str().context("id")?;
    let log = daemon.root().join("pods").join(id).join("kernel.log");
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&log)?.contains("ended: code 6") {
        ensure!(Instant::now() < deadline, "its end is not in the log");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_process(vmm_pid(&pod)?, Signal::KILL)?;
    daemon.restart()?;
    let pod = daemon.wait_for("victim", "failed", |p| p["phase"] == "PHASE_FAILED")?;
    let (victim, ends) = (&pod["containers"][0], &pod["containers"][1]);
    ensure!(victim["reason"] == "VmDied", "{pod:#}");
    ensure!(ends["exitCode"] == 6, "{pod:#}");
    daemon.cli(["rm", "victim"])?.ok()?;
    let left = processes_naming(&daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn killed_while_starting() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    // At several moments of the start; each pod comes up or says why not.
    for (n, delay_ms) in [0_u64, 30, 100, 250, 500].into_iter().enumerate() {
        let name = format!("starting-{n}");
        daemon.run_detached(&one(&name, "echo up; exec sleep 1000", json!({})))?;
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        daemon.kill()?;
        daemon.restart()?;
        daemon.wait_for(&name, "running", running)?;
    }
    for n in 0..5 {
        daemon
            .cli(["rm", "--force", &format!("starting-{n}")])?
            .ok()?;
    }
    let left = processes_naming(&daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}
