//! emptyDir, on disk and in memory.

use crate::{Test, shared};
use anyhow::ensure;
use serde_json::json;
use spherule_tests::manifest::{container, pod};

pub(crate) const TESTS: &[Test] = &[
    ("empty_dir_outlives_a_container_and_is_shared", shared_dir),
    ("read_only_mount_refuses_writes", read_only),
    ("sub_path_shows_only_its_directory", sub_path),
    (
        "sub_path_that_is_missing_is_for_whom_the_volume_is_for",
        missing_sub_path,
    ),
    ("size_limit_of_a_disk_volume_is_enforced", || {
        size_limit("", "disk-limit")
    }),
    ("size_limit_of_a_memory_volume_is_enforced", || {
        size_limit("Memory", "memory-limit")
    }),
    ("memory_volume_is_a_tmpfs", tmpfs),
];

fn shared_dir() -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let writer = container("writer", "echo kept > /v/a; touch /v/done", mount.clone());
    let wait = "until test -e /v/done; do sleep 0.1; done; cat /v/a; stat -c %a /v";
    let reader = container("reader", wait, mount);
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let out = shared::daemon()?
        .run(&pod("shared-dir", &[writer, reader], spec))?
        .ok()?;
    ensure!(out == "[reader] kept\n[reader] 777\n", "{out}");
    Ok(())
}

fn read_only() -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}]});
    let c = container("c", "touch /v/x 2>&1", mount);
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let ran = shared::daemon()?.run(&pod("ro-volume", &[c], spec))?;
    ensure!(ran.stdout.contains("Read-only file system"), "{ran}");
    ran.code(1)?;
    Ok(())
}

fn sub_path() -> anyhow::Result<()> {
    let init = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let init = container(
        "init",
        "mkdir -p /v/a/b; echo deep > /v/a/b/f; echo top > /v/top",
        init,
    );
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/sub", "subPath": "a/b"}]});
    let main = container("main", "ls /sub; cat /sub/f", mount);
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [init]});
    let out = shared::daemon()?
        .run(&pod("sub-path", &[main], spec))?
        .ok()?;
    ensure!(out == "[main] f\n[main] deep\n", "{out}");
    Ok(())
}

fn missing_sub_path() -> anyhow::Result<()> {
    let mount =
        |name: &str| json!({"name": name, "mountPath": format!("/{name}"), "subPath": "a/b"});
    let mounts = json!({"volumeMounts": [mount("disk"), mount("memory")]});
    let script = "cd /; touch disk/f memory/f; stat -c %a:%g disk memory disk/f memory/f";
    for (name, context, want) in [
        (
            "sub-path-user",
            json!({"runAsUser": 1000}),
            "777:0 777:0 644:1000 644:1000",
        ),
        (
            "sub-path-group",
            json!({"runAsUser": 1000, "fsGroup": 4000}),
            "2777:4000 2777:4000 644:4000 644:4000",
        ),
    ] {
        let spec = json!({"securityContext": context, "volumes": [
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}}]});
        let c = container("c", script, mounts.clone());
        let out = shared::daemon()?.run(&pod(name, &[c], spec))?.ok()?;
        let seen: Vec<&str> = out.lines().map(|l| l.trim_start_matches("[c] ")).collect();
        ensure!(seen.join(" ") == want, "{name}: {out}");
    }
    Ok(())
}

fn size_limit(medium: &str, name: &str) -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let script = "dd if=/dev/zero of=/v/small bs=1M count=4 2>/dev/null && echo fits; \
        dd if=/dev/zero of=/v/big bs=1M count=16 2>&1 | grep -o -e 'No space left' -e 'quota exceeded'";
    let c = container("c", script, mount);
    let spec =
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": medium, "sizeLimit": "8Mi"}}]});
    let out = shared::daemon()?.run(&pod(name, &[c], spec))?.ok()?;
    ensure!(out.starts_with("[c] fits\n[c] "), "{out}");
    Ok(())
}

fn tmpfs() -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let c = container("c", "grep ' /v ' /proc/mounts", mount);
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]});
    let out = shared::daemon()?.run(&pod("tmpfs", &[c], spec))?.ok()?;
    ensure!(out.contains(" tmpfs rw"), "{out}");
    Ok(())
}
