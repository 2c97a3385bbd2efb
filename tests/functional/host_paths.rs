//! Directories of the host that its administrator lets pods have, and fsGroup.

use crate::Test;
use anyhow::ensure;
use serde_json::{Value, json};
use spherule_tests::manifest::{config_map, container, documents, pod, secret};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

pub(crate) const TESTS: &[Test] = &[
    ("only_allowed_directories_are_given", allowed),
    ("fs_group_opens_volumes_to_a_user_of_the_group", fs_group),
];

fn one(name: &str, script: &str, path: &str, kind: &str) -> String {
    let mount = json!({"volumeMounts": [{"name": "h", "mountPath": "/h",
        "mountPropagation": "HostToContainer"}]});
    let spec = json!({"volumes": [{"name": "h", "hostPath": {"path": path, "type": kind}}]});
    pod(name, &[container("c", script, mount)], spec)
}

fn allowed() -> anyhow::Result<()> {
    let host = tempfile::tempdir()?;
    let (inside, outside) = (host.path().join("in"), host.path().join("out"));
    fs::create_dir(&inside)?;
    fs::create_dir(&outside)?;
    symlink(&outside, inside.join("leaves"))?;
    let path = |name: &str| inside.join(name).display().to_string();
    let daemon = Daemon::with(DaemonOptions::allowing(&inside))?;
    let out = outside.display().to_string();
    let not_allowed = ["spec.volumes[0].hostPath.path", "--allow-host-path"];
    for path in [out, path("leaves"), path("leaves/new"), "/".to_owned()] {
        let ran = daemon.run(&one("outside", "true", &path, ""))?;
        ran.refused(&not_allowed)?;
    }
    ensure!(!outside.join("new").exists());
    daemon
        .run(&one("socket", "true", &path("s"), "Socket"))?
        .refused(&["spec.volumes[0].hostPath.type", "virtual machine"])?;

    let made = path("made/deep");
    let out = daemon.run(&one(
        "made",
        "echo x >/h/f; ls /h",
        &made,
        "DirectoryOrCreate",
    ))?;
    ensure!(out.ok()? == "[c] f\n", "not written");
    ensure!(fs::read_to_string(inside.join("made/deep/f"))? == "x\n");

    // Accepted, then led elsewhere: it is not followed.
    daemon.run_detached(&one("late", "cat /h/x", &path("later"), "Directory"))?;
    daemon.wait_for("late", "waiting", |p| p["reason"] == "FailedMount")?;
    symlink(&outside, inside.join("later"))?;
    let told = daemon.wait_for("late", "refused", |p| {
        p["message"].to_string().contains("does not lie in")
    })?;
    ensure!(told["phase"] == "PHASE_PENDING", "{told:#}");
    fs::remove_file(inside.join("later"))?;
    fs::create_dir(inside.join("later"))?;
    fs::write(inside.join("later/x"), "there\n")?;
    daemon.wait_for("late", "over", |p| p["phase"] == "PHASE_SUCCEEDED")?;
    ensure!(daemon.cli(["logs", "late"])?.ok()? == "there\n");
    Ok(())
}

fn volume(name: &str, path: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "local": {"path": path}}})
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn fs_group() -> anyhow::Result<()> {
    let host = tempfile::tempdir()?;
    let data = host.path().join("data");
    fs::create_dir_all(data.join("d"))?;
    fs::write(data.join("d/f"), "kept\n")?;
    fs::set_permissions(data.join("d/f"), fs::Permissions::from_mode(0o600))?;
    let daemon = Daemon::with(DaemonOptions::allowing(&host))?;
    daemon
        .apply(&documents(&[volume("elsewhere", "/etc")]))?
        .refused(&["--allow-host-path"])?;
    let script = "id -G; for v in disk memory map secret data; do stat -Lc '%n %a %g' /$v; done; \
        touch /disk/x /memory/x && stat -c '%u %g' /disk/x /memory/x; \
        stat -Lc '%a %g' /secret/k && cat /secret/k && echo; cat /data/d/f; \
        echo new >/data/d/new && stat -c '%u %g' /data/d/new";
    let names = ["disk", "memory", "map", "secret", "data"];
    let mounts: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "mountPath": format!("/{name}")}))
        .collect();
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "map", "configMap": {"name": "m"}},
        {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
    ]);
    let context = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 3000,
        "fsGroupChangePolicy": "OnRootMismatch"});
    let c = container("c", script, json!({"volumeMounts": mounts}));
    let manifest = pod(
        "group",
        &[c],
        json!({"volumes": volumes, "securityContext": context}),
    );
    let stream = documents(&[
        volume("v", &data.display().to_string()),
        claim("c"),
        config_map("m", json!({"k": "v"})),
        secret("s", json!({"k": "word"})),
        serde_json::from_str(&manifest)?,
    ]);
    let out = daemon.run(&stream)?.ok()?;
    let (groups, out) = out.split_once('\n').unwrap_or_default();
    ensure!(
        groups.ends_with(" 3000") || groups.contains(" 3000 "),
        "{groups}"
    );
    let want = "[c] /disk 2777 3000\n[c] /memory 2777 3000\n[c] /map 2755 3000\n\
        [c] /secret 2755 3000\n[c] /data 2775 3000\n[c] 1000 3000\n[c] 1000 3000\n[c] 440 3000\n\
        [c] word\n[c] kept\n[c] 1000 3000\n";
    ensure!(out == want, "{out}");
    let kept = fs::metadata(data.join("d/f"))?;
    ensure!((kept.mode() & 0o777, kept.gid()) == (0o660, 3000));
    let bound = daemon.cli(["objects", "pvc"])?.ok()?;
    ensure!(bound.contains(" v "), "{bound}");
    daemon
        .cli(["delete", "pv", "v"])?
        .refused(&["PersistentVolumeClaim default/c"])?;
    // Its data outlives the pod, the claim and the volume.
    daemon.cli(["delete", "pvc", "c"])?.ok()?;
    daemon.cli(["delete", "pv", "v"])?.ok()?;
    ensure!(data.join("d/new").exists());
    Ok(())
}
