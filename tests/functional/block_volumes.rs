//! Claims on image files: the device itself, and the file system on it.

use crate::Test;
use anyhow::ensure;
use serde_json::{Value, json};
use spherule_tests::manifest::{container, documents, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("block_volumes_of_claims_outlive_pods_and_daemon", claims),
    ("all_of_a_block_volume_is_given_to_the_pods_group", group),
];

/// A PersistentVolume on a file of the host.
pub(crate) fn volume(
    name: &str,
    path: &Path,
    mode: &str,
    local: Value,
    annotations: Value,
) -> Value {
    let mut source = json!({"path": path});
    if let (Some(source), Some(more)) = (source.as_object_mut(), local.as_object()) {
        source.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "manual", "volumeMode": mode, "local": source}})
}

/// A claim of the volume with its name.
pub(crate) fn claim(name: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "manual", "volumeMode": mode,
        "volumeName": name, "resources": {"requests": {"storage": "64Mi"}}}})
}

fn user(name: &str, script: &str) -> String {
    let c = json!({
        "volumeDevices": [{"name": "raw", "devicePath": "/dev/xvda"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let of = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    pod(
        name,
        &[container("c", script, c)],
        json!({"volumes": [of("raw"), of("data")], "terminationGracePeriodSeconds": 0}),
    )
}

fn running(pod: &Value) -> bool {
    pod["containers"][0]["state"] == "STATE_RUNNING"
}

fn claims() -> anyhow::Result<()> {
    let host = tempfile::tempdir()?;
    let (raw, data) = (host.path().join("raw"), host.path().join("data"));
    for path in [&raw, &data] {
        File::create(path)?.set_len(64 << 20)?;
    }
    let mut daemon = Daemon::with(DaemonOptions::allowing(&host))?;
    let slow = json!({"spherule.dev/bytes-per-second": "fast"});
    daemon
        .apply(&volume("raw", &raw, "Block", json!({}), slow).to_string())?
        .refused(&["bytes-per-second", "must be a quantity"])?;
    let limits = json!({"spherule.dev/bytes-per-second": "64Mi",
        "spherule.dev/operations-per-second": "5k"});
    let ext4 = json!({"fsType": "ext4"});
    let objects = documents(&[
        volume("raw", &raw, "Block", json!({}), limits),
        volume("data", &data, "Filesystem", ext4, json!({})),
        claim("raw", "Block"),
        claim("data", "Filesystem"),
    ]);
    daemon.apply(&objects)?.ok()?;

    let script = "printf first | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null &&
        echo first >/data/f && sync /data/f && echo written; exec sleep 1000";
    daemon.run_detached(&user("first", script))?;
    daemon.wait_for_output("first", "written")?;
    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_for("first", "running", running)?;
    let more = "echo more >>/data/f; head -c 5 /dev/xvda; blockdev --getsize64 /dev/xvda";
    let out = daemon
        .cli(["exec", "first", "--", "sh", "-c", more])?
        .ok()?;
    ensure!(out == format!("first{}\n", 64 << 20), "{out}");
    let mut found = [0; 5];
    File::open(&raw)?.read_exact_at(&mut found, 0)?;
    ensure!(&found == b"first", "{found:?}");

    // Given again, they are looked at again: what has grown, the pod sees.
    for path in [&raw, &data] {
        File::options().write(true).open(path)?.set_len(128 << 20)?;
    }
    let seen = "blockdev --getsize64 /dev/xvda; df -m /data | awk 'END { print ($2 > 90) }'";
    let look = || daemon.cli(["exec", "first", "--", "sh", "-c", seen])?.ok();
    ensure!(look()? == format!("{}\n0\n", 64 << 20));
    daemon.apply(&objects)?.ok()?;
    ensure!(look()? == format!("{}\n1\n", 128 << 20), "{}", look()?);
    File::options().write(true).open(&raw)?.set_len(64 << 20)?;
    daemon
        .apply(&objects)?
        .refused(&["PersistentVolume raw", "first"])?;
    File::options().write(true).open(&raw)?.set_len(128 << 20)?;

    // In one place at a time: the second waits for the first to go.
    let script = "cat /data/f; head -c 5 /dev/xvda; echo";
    daemon.run_detached(&user("second", script))?;
    let told = daemon.wait_for("second", "waiting", |p| p["reason"] == "FailedMount")?;
    let message = told["message"].to_string();
    ensure!(message.contains("one place at a time"), "{told:#}");
    daemon.cli(["rm", "--force", "first"])?.ok()?;
    daemon.wait_for("second", "ended", |p| p["phase"] == "PHASE_SUCCEEDED")?;
    daemon.wait_for_output("second", "first\nmore\nfirst\n")?;
    daemon.cli(["rm", "--force", "second"])?.ok()?;

    // A device is not mounted.
    let c = json!({"volumeMounts": [{"name": "raw", "mountPath": "/raw"}]});
    let wrong =
        json!({"volumes": [{"name": "raw", "persistentVolumeClaim": {"claimName": "raw"}}]});
    daemon.run_detached(&pod("wrong", &[container("c", "true", c)], wrong))?;
    let told = daemon.wait_for("wrong", "refused", |p| {
        p.to_string().contains("volumeMode Block")
    })?;
    ensure!(told.to_string().contains("volumeDevices"), "{told:#}");
    daemon.cli(["rm", "--force", "wrong"])?.ok()?;
    Ok(())
}

fn group() -> anyhow::Result<()> {
    let host = tempfile::tempdir()?;
    let data = host.path().join("data");
    File::create(&data)?.set_len(64 << 20)?;
    let daemon = Daemon::with(DaemonOptions::allowing(&host))?;
    daemon
        .apply(&documents(&[
            volume("data", &data, "Filesystem", json!({}), json!({})),
            claim("data", "Filesystem"),
        ]))?
        .ok()?;
    let run = |name: &str, script: &str, context: Value| {
        let c = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        let spec = json!({"volumes": volumes, "securityContext": context});
        let ran = daemon
            .run(&pod(name, &[container("c", script, c)], spec))?
            .ok();
        daemon.cli(["rm", "--force", name])?.ok()?;
        ran
    };
    let secret = "mkdir -m 700 /data/d && echo a >/data/d/f && chmod 600 /data/d/f";
    run("owner", secret, json!({}))?;
    let read = "cat /data/d/f; stat -c %a:%g /data /data/d /data/d/f";
    let user =
        |policy: &str| json!({"runAsUser": 1000, "fsGroup": 2000, "fsGroupChangePolicy": policy});
    let out = run("always", read, user("Always"))?;
    let want = ["a", "2775:2000", "2770:2000", "660:2000"];
    ensure!(
        out.lines().map(|l| l.trim_start_matches("[c] ")).eq(want),
        "{out}"
    );
    // The top is right: what is beneath it is left as it is.
    run(
        "owner",
        "chmod 600 /data/d/f && chgrp 0 /data/d/f",
        json!({}),
    )?;
    let out = run(
        "mismatch",
        "cat /data/d/f || echo not",
        user("OnRootMismatch"),
    )?;
    ensure!(out.ends_with("not\n"), "{out}");
    let out = run("again", read, user("Always"))?;
    ensure!(out.contains("660:2000"), "{out}");
    Ok(())
}
