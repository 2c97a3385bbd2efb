//! Ephemeral containers: `spherule debug`.

use crate::sessions::pod;
use crate::terminals::{Terminal, words};
use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::manifest::{container, one, pod as manifest};
use spherule_tests::{Daemon, IMAGE};
use std::io::Write;
use std::process::Stdio;

pub(crate) const TESTS: &[Test] = &[
    ("container_is_added_to_see_its_targets_processes", looks),
    ("added_container_has_input_output_and_sessions", sessions),
    ("containers_that_cannot_be_added_are_refused", refusals),
    ("added_container_goes_on_without_the_daemon", daemon_dies),
    ("added_container_counts_for_nothing", counts_not),
    ("added_container_waits_for_its_target", waits),
];

pub(crate) const TERMINALS: &[Test] = &[("added_container_has_our_terminal", terminal)];

/// The ephemeral container of this name.
fn added(pod: &Value, name: &str) -> Value {
    let all = pod["ephemeralContainers"].as_array();
    let mut all = all.into_iter().flatten();
    let found = all.find(|container| container["name"] == name);
    found.cloned().unwrap_or_default()
}

fn wait_for_state(daemon: &Daemon, pod: &str, name: &str, state: &str) -> anyhow::Result<Value> {
    let so = |pod: &Value| added(pod, name)["state"] == state;
    Ok(added(&daemon.wait_for(pod, state, so)?, name))
}

fn looks() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("looks", "exec sleep 86421")?;
    let ps = ["--", "sh", "-c", "ps -o pid,args; echo bad >&2; exit 4"];
    let ran = daemon.cli(["debug", "--target", "c", "looks"].into_iter().chain(ps))?;
    ensure!(ran.stderr.contains("bad\n"), "{ran}");
    let said = ran.code(4)?;
    ensure!(said.contains("1 sleep 86421"), "{said}");
    // Without a target it sees its own only.
    let ran = daemon.cli(["debug", "--name", "own", "looks"].into_iter().chain(ps))?;
    let said = ran.code(4)?;
    ensure!(!said.contains("86421"), "{said}");

    let now = daemon.inspect("looks")?;
    let first = added(&now, "debugger-1");
    ensure!(first["state"] == "STATE_TERMINATED", "{first}");
    ensure!(
        first["exitCode"] == 4 && first["target"] == "c" && first["image"] == IMAGE,
        "{first}"
    );
    let kept = &now["manifest"]["spec"]["ephemeralContainers"];
    ensure!(kept[0]["targetContainerName"] == "c", "{kept}");
    ensure!(kept[1]["name"] == "own", "{kept}");
    ensure!(now["containers"][0]["state"] == "STATE_RUNNING", "{now}");
    let log = daemon.cli(["logs", "-c", "debugger-1", "looks"])?;
    ensure!(log.ok()?.contains("1 sleep 86421"));
    Ok(())
}

fn sessions() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("debugged", "exec sleep 86421")?;
    let mut child = daemon
        .command(["debug", "-i", "debugged", "--", "sh", "-c", "cat; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // What is piped in ends.
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(b"typed in")?;
    let out = child.wait_with_output()?;
    ensure!(
        out.status.code() == Some(6) && out.stdout == b"typed in",
        "{out:?}"
    );

    let script = "while ! test -e /end; do echo tick; usleep 100000; done; exit 7";
    let stays = [
        "debug", "-d", "--name", "stays", "--target", "c", "debugged",
    ];
    let command = ["--", "sh", "-c", script];
    let named = daemon.cli(stays.into_iter().chain(command))?;
    ensure!(named.ok()? == "stays\n");
    wait_for_state(&daemon, "debugged", "stays", "STATE_RUNNING")?;
    let attached = daemon
        .command(["attach", "-c", "stays", "debugged"])
        .stdout(Stdio::piped())
        .spawn()?;
    let ps = ["exec", "-c", "stays", "debugged", "--", "ps", "-o", "args"];
    ensure!(daemon.cli(ps)?.ok()?.contains("sleep 86421"));
    daemon.wait_for_output("debugged", "tick")?;
    let end = ["exec", "-c", "stays", "debugged", "--", "touch", "/end"];
    // Killed where its container is faster to end.
    daemon.cli(end)?;
    let out = attached.wait_with_output()?;
    ensure!(out.status.code() == Some(7), "{out:?}");
    Ok(())
}

fn refusals() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let given = json!({"ephemeralContainers": [{"name": "e", "image": IMAGE}]});
    let new = manifest("early", &[container("c", "true", json!({}))], given);
    let refused = daemon.run(&new)?;
    refused.refused(&[
        "spec.ephemeralContainers: cannot be given",
        "spherule debug",
    ])?;

    let two = [
        container("c", "exec sleep 86421", json!({})),
        container("ended", "exit 0", json!({})),
    ];
    daemon.run_detached(&manifest("refuses", &two, json!({})))?;
    let ready = |pod: &Value| {
        pod["containers"][0]["state"] == "STATE_RUNNING"
            && pod["containers"][1]["state"] == "STATE_TERMINATED"
    };
    daemon.wait_for("refuses", "running", ready)?;
    let debug = |args: &[&str], words: &[&str]| -> anyhow::Result<()> {
        let args = ["debug"].into_iter().chain(args.iter().copied());
        daemon.cli(args.chain(["--", "true"]))?.refused(words)
    };
    debug(
        &["--target", "ghost", "refuses"],
        &["ghost", "it has: c, ended"],
    )?;
    debug(
        &["--target", "ended", "refuses"],
        &["container ended, has ended"],
    )?;
    debug(
        &["--name", "c", "refuses"],
        &["is the name of another container"],
    )?;
    debug(
        &["--name", "Not_OK", "refuses"],
        &["name: must be a DNS label"],
    )?;
    let nowhere = [
        "--image",
        "localhost/none:1",
        "--image-pull-policy",
        "Never",
    ];
    debug(
        &[&nowhere[..], &["refuses"]].concat(),
        &["localhost/none:1", "ErrImageNeverPull"],
    )?;
    debug(&["nobody"], &["no pod is called \"nobody\""])?;
    // None of them is there.
    ensure!(daemon.inspect("refuses")?["ephemeralContainers"] == json!([]));
    let once = ["debug", "--name", "once", "refuses", "--", "true"];
    daemon.cli(once)?.ok()?;
    debug(
        &["--name", "once", "refuses"],
        &["name of another container"],
    )?;
    daemon.cli(["stop", "refuses"])?.ok()?;
    debug(&["refuses"], &["has ended"])
}

fn daemon_dies() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    daemon.run_detached(&one("kept", "exec sleep 86421", json!({})))?;
    daemon.wait_for("kept", "running", |pod| {
        pod["containers"][0]["state"] == "STATE_RUNNING"
    })?;
    let script = "while ! test -e /end; do usleep 100000; done; echo ended; exit 5";
    let args = ["debug", "-d", "--name", "e", "--target", "c", "kept"];
    daemon
        .cli(args.into_iter().chain(["--", "sh", "-c", script]))?
        .ok()?;
    // Added, and perhaps not begun yet.
    daemon.kill()?;
    daemon.restart()?;
    let before = wait_for_state(&daemon, "kept", "e", "STATE_RUNNING")?;
    daemon.kill()?;
    daemon.restart()?;
    let after = wait_for_state(&daemon, "kept", "e", "STATE_RUNNING")?;
    ensure!(before["id"] == after["id"], "{before} {after}");
    let end = ["exec", "-c", "e", "kept", "--", "touch", "/end"];
    // Killed where its container is faster to end.
    daemon.cli(end)?;
    let ended = wait_for_state(&daemon, "kept", "e", "STATE_TERMINATED")?;
    ensure!(
        ended["exitCode"] == 5 && ended["restartCount"] == 0,
        "{ended}"
    );
    let log = daemon.cli(["logs", "-c", "e", "kept"])?;
    ensure!(log.ok()? == "ended\n");
    Ok(())
}

fn counts_not() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    // It is not restarted where others are, and its end is not the pod's.
    let spec = json!({"restartPolicy": "Always"});
    let script = "while ! test -e /end; do usleep 100000; done";
    let text = manifest("counts", &[container("c", script, json!({}))], spec);
    daemon.run_detached(&text)?;
    let runs = |pod: &Value| pod["phase"] == "PHASE_RUNNING";
    daemon.wait_for("counts", "running", runs)?;
    let debug = ["debug", "counts", "--", "sh", "-c", "exit 9"];
    daemon.cli(debug)?.code(9)?;
    let lasts = [
        "debug", "-d", "--name", "lasts", "counts", "--", "sleep", "86421",
    ];
    daemon.cli(lasts)?.ok()?;
    wait_for_state(&daemon, "counts", "lasts", "STATE_RUNNING")?;
    let now = daemon.inspect("counts")?;
    ensure!(now["phase"] == "PHASE_RUNNING", "{now}");
    ensure!(added(&now, "debugger-1")["exitCode"] == 9, "{now}");

    // Where the others have ended it ends with the pod.
    let once = one("ends", script, json!({}));
    daemon.run_detached(&once)?;
    daemon.wait_for("ends", "running", runs)?;
    let lasts = [
        "debug", "-d", "--name", "lasts", "ends", "--", "sleep", "86421",
    ];
    daemon.cli(lasts)?.ok()?;
    wait_for_state(&daemon, "ends", "lasts", "STATE_RUNNING")?;
    // Killed where its container is faster to end.
    daemon.cli(["exec", "ends", "--", "touch", "/end"])?;
    let over = |pod: &Value| pod["phase"] == "PHASE_SUCCEEDED";
    let over = daemon.wait_for("ends", "over", over)?;
    let lasts = added(&over, "lasts");
    ensure!(lasts["state"] == "STATE_TERMINATED", "{lasts}");
    Ok(())
}

fn waits() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    // Twice it fails; after a pause it stays.
    let script = "echo >> /v/starts; test $(wc -l < /v/starts) -lt 3 && exit 1; exec sleep 86421";
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let spec = json!({"restartPolicy": "Always", "volumes": [{"name": "v", "emptyDir": {}}]});
    let text = manifest("held-up", &[container("c", script, mounts)], spec);
    daemon.run_detached(&text)?;
    daemon.wait_for("held-up", "held up", |pod| {
        pod["containers"][0]["reason"] == "CrashLoopBackOff"
    })?;
    // The target is there before it has become what it will be.
    let look = "for n in $(seq 600); do
            ps -o pid,args | grep '^ *1 sleep 86421$' && exit
            sleep 0.1
        done
        ps -o pid,args; exit 1";
    let debug = ["debug", "--target", "c", "held-up", "--", "sh", "-c", look];
    daemon.cli(debug)?.ok()?;
    Ok(())
}

fn terminal() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("seen", "exec sleep 86421")?;
    let within = "read go; stty size; ps -o pid,args; echo do\"\"ne; read end; exit 9";
    let debug = [
        "debug", "-it", "--target", "c", "seen", "--", "sh", "-c", within,
    ];
    let mut shell = Terminal::new(&format!(
        "{}; echo code $?; stty -a; echo bye",
        words(&daemon, &debug)
    ))?;
    shell.until("container debugger-1 of pod seen")?;
    // Until it is attached to nobody reads.
    wait_for_state(&daemon, "seen", "debugger-1", "STATE_RUNNING")?;
    shell.type_in("go\r")?;
    shell.until("33 77")?;
    shell.until("1 sleep 86421")?;
    shell.until("done")?;
    shell.type_in("end\r")?;
    shell.until("code 9")?;
    shell.until("bye")
}
