//! ConfigMaps, Secrets and facts of the pod, as files and as variables.

use crate::{Test, shared};
use anyhow::ensure;
use serde_json::{Value, json};
use spherule_tests::manifest::{config_map, container, documents, pod, secret};
use spherule_tests::{Daemon, IMAGE};
use std::path::Path;
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    ("every_kind_of_source_is_seen_in_the_guest", sources),
    ("updates_reach_a_running_pod_whole", updates),
    ("pod_waits_for_what_is_missing", missing),
    ("objects_are_refused_whole", refusals),
];

/// A script of one container, and what it prints.
fn sources() -> anyhow::Result<()> {
    let script = "cat /map/x /map/d/y; stat -c '%a %U' /map/..data/x; readlink /map/x; \
        md5sum </secret/p; stat -Lc %a /secret/p; ls -1 /all; cat /all/labels; echo; cat /facts/cpu; echo; \
        cat /sub; test -x /image/bin/busybox && echo image; touch /map/new 2>&1; \
        echo \"$ALL_A $K $NAME $CPU\"; printf %s \"$P\" | md5sum; ls -1 /expr";
    let mounts = json!([
        {"name": "map", "mountPath": "/map"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "all", "mountPath": "/all", "readOnly": true, "recursiveReadOnly": "Enabled"},
        {"name": "facts", "mountPath": "/facts"},
        {"name": "map", "mountPath": "/sub", "subPath": "d/y"},
        {"name": "image", "mountPath": "/image"},
        {"name": "map", "mountPath": "/expr", "subPathExpr": "$(DIR)"},
    ]);
    let env = json!([
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "sources", "key": "b"}}},
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "sources", "key": "p"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "DIR", "value": "d"},
    ]);
    let c = json!({
        "volumeMounts": mounts, "env": env,
        "envFrom": [{"prefix": "ALL_", "configMapRef": {"name": "sources-all"}}],
        "resources": {"limits": {"cpu": "1"}},
    });
    let volumes = json!([
        {"name": "map", "configMap": {"name": "sources", "items": [
            {"key": "a", "path": "x", "mode": 0o600}, {"key": "b", "path": "d/y"}]}},
        {"name": "secret", "secret": {"secretName": "sources", "defaultMode": 0o400}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "sources"}}, {"secret": {"name": "sources"}},
            {"configMap": {"name": "nowhere", "optional": true}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}},
        {"name": "facts", "downwardAPI": {"items": [{"path": "cpu", "resourceFieldRef":
            {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
        {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "Never"}},
    ]);
    let mut manifest: Value = serde_json::from_str(&pod(
        "sources",
        &[container("c", script, c)],
        json!({"volumes": volumes}),
    ))?;
    manifest["metadata"]["labels"] = json!({"app": "x"});
    // Said nowhere else, so that it is found wherever it should not be.
    let word = "hidden-".to_owned() + "bf34c9e1";
    let stream = documents(&[
        config_map("sources", json!({"a": "1\n", "b": "2\n"})),
        config_map("sources-all", json!({"A": "3"})),
        secret("sources", json!({"p": word})),
        manifest,
    ]);
    let daemon = shared::daemon()?;
    let out = daemon.run(&stream)?.ok()?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(lines.len() == 19, "{out}");
    let files = [
        "1",
        "2",
        "600 root",
        "..data/x",
        "400",
        "a",
        "b",
        "labels",
        "p",
        "app=\"x\"",
        "1000",
        "2",
        "image",
    ];
    let (before, after) = (&lines[..4], &lines[5..14]);
    let seen = before
        .iter()
        .chain(after)
        .map(|line| line.trim_start_matches("[c] "));
    ensure!(seen.eq(files), "{out}");
    ensure!(lines[14].contains("Read-only file system"), "{out}");
    // The variable and the file are one.
    ensure!(
        lines[15] == "[c] 3 2" && lines[16] == "[c]  sources 1",
        "{out}"
    );
    ensure!(lines[17] == lines[4] && lines[18] == "[c] y", "{out}");
    hidden(&daemon, &word)
}

/// The word is not shown, and on disk in no file but the records.
fn hidden(daemon: &Daemon, word: &str) -> anyhow::Result<()> {
    for args in [
        &["inspect", "sources"][..],
        &["objects", "--output", "json"],
        &["logs", "sources"],
    ] {
        let ran = daemon.cli(args.iter().copied())?;
        ensure!(!format!("{ran}").contains(word), "{ran}");
    }
    ensure!(!daemon.log().contains(word), "{}", daemon.log());
    // Its volumes have gone with it.
    daemon.cli(["rm", "sources"])?.ok()?;
    let found = Command::new("grep")
        .args(["-rl", word, "--exclude=*.img", "--exclude-dir=images"])
        .args([daemon.root(), daemon.run_dir()])
        .output()?;
    let found = String::from_utf8(found.stdout)?;
    let records = daemon.root().join("state.redb");
    ensure!(
        found.lines().all(|path| Path::new(path) == records),
        "{found}"
    );
    let mode = std::fs::metadata(records)?;
    ensure!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777 == 0o600);
    Ok(())
}

fn updates() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let map = |value: &str| documents(&[config_map("both", json!({"a": value, "b": value}))]);
    // Both files through one look at the link: of one generation, or one of them is
    // gone and the look is repeated.
    let script = "echo ready; last=; while [ \"$last\" != end ]; do d=$(readlink /v/..data); \
        a=$(cat /v/$d/a 2>/dev/null) && b=$(cat /v/$d/b 2>/dev/null) || continue; \
        [ \"$a\" = \"$b\" ] || echo \"mixed $a $b\"; cat /v/a >/dev/null || echo missing; \
        [ \"$a\" = \"$last\" ] || { last=$a; echo \"saw $a\"; }; done; cat /sub; echo; \
        while [ $(ls -a /v | wc -l) != 6 ]; do sleep 0.2; done; ls -a /v | wc -l";
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"},
        {"name": "v", "mountPath": "/sub", "subPath": "a"}]});
    let c = container("c", script, mounts);
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "both"}}]});
    daemon.apply(&map("first"))?.ok()?;
    let id = daemon.run_detached(&pod("updates", &[c], spec))?;
    let saw = |daemon: &Daemon, what: &str| {
        let line = format!("{what}\n");
        daemon.wait_for_output("updates", &line)
    };
    saw(&daemon, "saw first")?;
    for i in 0..30 {
        daemon.apply(&map(&format!("value-{i}")))?.ok()?;
    }
    saw(&daemon, "saw value-29")?;
    daemon.kill()?;
    // As a daemon leaves it that is killed in the middle of a write.
    let dir = daemon.run_dir().join("volumes").join(&id).join("v");
    let half = dir.join("..2000_01_01_00_00_00.0");
    std::fs::create_dir(&half)?;
    std::fs::write(half.join("a"), "half")?;
    std::os::unix::fs::symlink(&half, dir.join("..data_tmp"))?;
    std::fs::remove_file(dir.join("b"))?;
    daemon.restart()?;
    daemon.wait_for("updates", "put right", |_| {
        !half.exists() && dir.join("b").exists()
    })?;
    daemon.apply(&map("end"))?.ok()?;
    let pod = daemon.wait_for("updates", "over", |p| p["phase"] == "PHASE_SUCCEEDED")?;
    let out = daemon.cli(["logs", "updates"])?.ok()?;
    // Nor was a file ever missing to who came through an older link.
    ensure!(
        !out.contains("mixed") && !out.contains("missing"),
        "{out} {pod}"
    );
    // A file of its own stays as it was; and after a while nothing is left of older
    // contents: a, b, the link, what it leads to, the directory and the one above it.
    ensure!(out.ends_with("saw end\nfirst\n6\n"), "{out}");
    daemon.wait_for("updates", "without volumes", |_| !dir.exists())?;
    Ok(())
}

fn missing() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let c = json!({
        "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "o", "mountPath": "/o"}],
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "late-secret", "key": "k"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "never", "key": "k", "optional": true}}}],
    });
    let c = container("c", "cat /v/k; echo $A${B-unset}; ls /o | wc -l", c);
    let volumes = json!({"volumes": [{"name": "v", "configMap": {"name": "late-map"}},
        {"name": "o", "secret": {"secretName": "never", "optional": true}}]});
    daemon.run_detached(&pod("waits", &[c], volumes))?;
    let told = daemon.wait_for("waits", "told", |p| p["reason"] == "FailedMount")?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("ConfigMap default/late-map is not there"),
        "{told:#}"
    );
    daemon
        .apply(&documents(&[config_map("late-map", json!({"k": "1\n"}))]))?
        .ok()?;
    let told = daemon.wait_for("waits", "told", |p| {
        p["containers"][0]["reason"] == "CreateContainerConfigError"
    })?;
    ensure!(
        told.to_string()
            .contains("Secret default/late-secret is not there"),
        "{told:#}"
    );
    daemon
        .apply(&documents(&[secret("late-secret", json!({"k": "2"}))]))?
        .ok()?;
    daemon.wait_for("waits", "over", |p| p["phase"] == "PHASE_SUCCEEDED")?;
    let out = daemon.cli(["logs", "waits"])?.ok()?;
    ensure!(out == "1\n2unset\n0\n", "{out}");
    daemon.cli(["delete", "secret", "late-secret"])?.ok()?;
    daemon
        .cli(["delete", "secret", "late-secret"])?
        .refused(&["there is no secret/late-secret"])?;
    let left = daemon.cli(["objects", "cm"])?.ok()?;
    ensure!(
        left.contains("late-map") && !left.contains("late-secret"),
        "{left}"
    );
    Ok(())
}

fn refusals() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let mut sealed = config_map("sealed", json!({"k": "1"}));
    sealed["immutable"] = json!(true);
    let out = daemon.apply(&documents(&[sealed]))?.ok()?;
    ensure!(out == "configmap/sealed created\n", "{out}");
    // All or none.
    let change = [
        config_map("beside", json!({})),
        config_map("sealed", json!({"k": "2"})),
    ];
    daemon
        .apply(&documents(&change))?
        .refused(&["ConfigMap default/sealed is immutable"])?;
    let left = daemon.cli(["objects"])?.ok()?;
    ensure!(!left.contains("beside"), "{left}");
    let word = "said-".to_owned() + "to-nobody";
    let bad = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": word}});
    let ran = daemon.apply(&documents(&[config_map("../x", json!({"..": "v"})), bad]))?;
    ensure!(!ran.stderr.contains(&word), "{ran}");
    ran.refused(&["metadata.name", "data[..]", "Secret \"s\": data.k"])?;
    let one = spherule_tests::manifest::one("no-object", "true", json!({}));
    daemon.apply(&one)?.refused(&["spherule run"])?;
    daemon
        .run(&documents(&[config_map("alone", json!({}))]))?
        .refused(&["spherule apply"])
}
