//! Restarts, stopping, removing, listing, following logs.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::manifest::{container, one, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

pub(crate) const TESTS: &[Test] = &[
    ("on_failure_restarts_until_it_succeeds", on_failure),
    ("always_restarts_with_growing_pauses", always),
    ("stop_sends_sigterm_and_keeps_logs", stop_term),
    ("stop_kills_after_the_grace_period", stop_kill),
    ("stop_and_rm_may_be_repeated", idempotent),
    ("rm_of_a_running_pod_wants_force", rm_force),
    ("removed_pod_leaves_no_file_and_no_process", nothing_left),
    ("logs_follow_until_the_pod_ends", logs_follow),
    ("ps_shows_running_pods_and_all_on_request", ps),
    ("pods_are_found_by_name_namespace_and_id_prefix", names),
];

/// A daemon whose restarts do not wait ten seconds.
fn impatient() -> anyhow::Result<Daemon> {
    let args = vec!["--restart-backoff".into(), "200ms".into()];
    Daemon::with(DaemonOptions {
        args,
        ..DaemonOptions::default()
    })
}

fn on_failure() -> anyhow::Result<()> {
    let daemon = impatient()?;
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let script = "echo x >> /v/tries; n=$(wc -l < /v/tries); echo try $n; test $n -ge 3";
    let spec = json!({"restartPolicy": "OnFailure", "volumes": [{"name": "v", "emptyDir": {}}]});
    let out = daemon
        .run(&pod("on-failure", &[container("c", script, mount)], spec))?
        .ok()?;
    ensure!(out == "[c] try 1\n[c] try 2\n[c] try 3\n", "{out}");
    let pod = daemon.inspect("on-failure")?;
    ensure!(pod["containers"][0]["restartCount"] == 2, "{pod:#}");
    Ok(())
}

fn always() -> anyhow::Result<()> {
    let daemon = impatient()?;
    let c = container("c", "echo again; exit 0", json!({}));
    daemon.run_detached(&pod("always", &[c], json!({"restartPolicy": "Always"})))?;
    let restarts = |p: &Value| p["containers"][0]["restartCount"].as_u64() >= Some(2);
    daemon.wait_for("always", "restarted twice", restarts)?;
    daemon.wait_for("always", "backing off", |p| {
        p["containers"][0]["reason"] == "CrashLoopBackOff"
    })?;
    ensure!(daemon.inspect("always")?["phase"] == "PHASE_RUNNING");
    daemon.cli(["stop", "always"])?.ok()?;
    let logs = daemon.cli(["logs", "always"])?.ok()?;
    ensure!(logs.matches("again").count() >= 3, "{logs}");
    Ok(())
}

/// Starts a pod and waits until it printed something.
fn start(daemon: &Daemon, name: &str, script: &str) -> anyhow::Result<()> {
    daemon.run_detached(&one(name, script, json!({})))?;
    daemon.wait_for(name, "running", |p| {
        p["containers"][0]["state"] != "STATE_WAITING"
            && daemon
                .cli(["logs", name])
                .and_then(|l| l.ok())
                .is_ok_and(|l| l.contains("up"))
    })?;
    Ok(())
}

fn stop_term() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "trap 'echo got TERM; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    start(&daemon, "stop-term", script)?;
    daemon.cli(["stop", "--grace", "60", "stop-term"])?.ok()?;
    let pod = daemon.inspect("stop-term")?;
    ensure!(pod["containers"][0]["exitCode"] == 5, "{pod:#}");
    let logs = daemon.cli(["logs", "stop-term"])?.ok()?;
    ensure!(logs == "up\ngot TERM\n", "{logs}");
    Ok(())
}

fn stop_kill() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start(
        &daemon,
        "stop-kill",
        "trap '' TERM; echo up; while :; do sleep 0.1; done",
    )?;
    daemon.cli(["stop", "--grace", "1", "stop-kill"])?.ok()?;
    let pod = daemon.inspect("stop-kill")?;
    ensure!(pod["containers"][0]["exitCode"] == 137, "{pod:#}");
    Ok(())
}

fn idempotent() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start(&daemon, "idempotent", "echo up; exec sleep 1000")?;
    for _ in 0..2 {
        daemon.cli(["stop", "--grace", "0", "idempotent"])?.ok()?;
    }
    for _ in 0..2 {
        daemon.cli(["rm", "idempotent"])?.ok()?;
    }
    daemon
        .cli(["inspect", "idempotent"])?
        .refused(&["idempotent"])
}

fn rm_force() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start(&daemon, "rm-force", "echo up; exec sleep 1000")?;
    daemon
        .cli(["rm", "rm-force"])?
        .refused(&["running", "force"])?;
    daemon.cli(["rm", "--force", "rm-force"])?.ok()?;
    Ok(())
}

fn nothing_left() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    start(&daemon, "leaver", "echo up; exec sleep 1000")?;
    let pod = daemon.inspect("leaver")?;
    let id = pod["id"].as_str().context("id")?;
    let vmm = pod["vm"]["vmmPid"].as_u64().context("vmmPid")?;
    ensure!(
        std::path::Path::new(&format!("/proc/{vmm}")).exists(),
        "no process {vmm}"
    );
    daemon.cli(["rm", "--force", "leaver"])?.ok()?;
    ensure!(
        !std::path::Path::new(&format!("/proc/{vmm}")).exists(),
        "process {vmm} is left"
    );
    for dir in [daemon.root(), daemon.run_dir()] {
        let left = find(&dir, id)?;
        ensure!(left.is_empty(), "left: {left:?}");
    }
    ensure!(
        processes_naming(&daemon)?.is_empty(),
        "left: {:?}",
        processes_naming(&daemon)?
    );
    Ok(())
}

/// Paths below a directory that have this in their name.
fn find(dir: &std::path::Path, name: &str) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().contains(name) {
            found.push(path);
        } else if path.is_dir() {
            found.extend(find(&path, name)?);
        }
    }
    Ok(found)
}

/// Processes, the daemon itself apart, that name its directory or work in it.
pub(crate) fn processes_naming(daemon: &Daemon) -> anyhow::Result<Vec<String>> {
    let dir = daemon.dir().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name() == daemon.pid().to_string().as_str() {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(&dir) || cwd.starts_with(&dir) {
            found.push(format!("{} {line}", entry.file_name().display()));
        }
    }
    Ok(found)
}

fn logs_follow() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "echo up; sleep 0.5; echo middle; sleep 0.5; printf 'no line end'";
    start(&daemon, "follow", script)?;
    let mut child = daemon
        .command(["logs", "-f", "follow"])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout")?);
    let lines: Vec<String> = lines.lines().collect::<Result<_, _>>()?;
    ensure!(child.wait()?.success(), "logs -f failed");
    ensure!(lines == ["up", "middle", "no line end"], "{lines:?}");
    Ok(())
}

fn ps() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start(&daemon, "ps-running", "echo up; exec sleep 1000")?;
    daemon.run(&one("ps-ended", "true", json!({})))?.ok()?;
    let running = daemon.cli(["ps"])?.ok()?;
    ensure!(
        running.contains("ps-running") && !running.contains("ps-ended"),
        "{running}"
    );
    let all = daemon.cli(["ps", "--all"])?.ok()?;
    ensure!(
        all.contains("ps-running") && all.contains("ps-ended"),
        "{all}"
    );
    ensure!(all.contains("Succeeded"), "{all}");
    daemon.cli(["rm", "--force", "ps-running"])?.ok()?;
    Ok(())
}

fn names() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let mut manifest: Value = serde_json::from_str(&one("named", "true", json!({})))?;
    manifest["metadata"]["namespace"] = "other".into();
    manifest["metadata"]["labels"] = json!({"app": "named"});
    daemon.run(&manifest.to_string())?.ok()?;
    daemon.cli(["inspect", "named"])?.refused(&["named"])?;
    let pod = daemon.inspect("other/named")?;
    let id = pod["id"].as_str().context("id")?;
    ensure!(daemon.inspect(&id[..12])?["id"] == id);
    let json = daemon
        .cli(["ps", "-a", "-l", "app=named", "--output", "json"])?
        .json()?;
    ensure!(json.as_array().is_some_and(|a| a.len() == 1), "{json:#}");
    Ok(())
}
