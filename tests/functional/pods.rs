//! Whole pods: output, exit codes, several containers.

use crate::{Test, shared};
use anyhow::ensure;
use serde_json::json;
use spherule_tests::checkout;
use spherule_tests::manifest::{container, one, pod};

pub(crate) const TESTS: &[Test] = &[
    ("hello_says_hello_and_ends_well", hello),
    ("web_serves_and_fetches_a_page_over_loopback", web),
    ("run_ends_with_the_containers_exit_code", exit_code),
    (
        "container_that_exits_at_once_shows_all_its_output",
        exits_at_once,
    ),
    (
        "init_containers_run_in_order_before_the_others",
        init_in_order,
    ),
    ("failed_init_container_fails_the_pod", init_fails),
    (
        "containers_share_loopback_ipc_and_host_name",
        shared_namespaces,
    ),
    ("pids_are_private_unless_shared", pid_namespaces),
    (
        "json_manifests_are_taken_and_shown_by_inspect",
        json_manifest,
    ),
    ("vcpus_and_memory_follow_the_limits", sizing),
];

fn manifest(name: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(
        checkout().join("tests/pods").join(name),
    )?)
}

fn hello() -> anyhow::Result<()> {
    let out = shared::daemon()?.run(&manifest("hello.yaml")?)?.ok()?;
    ensure!(
        out.contains("[hello] hello from hello, kernel 6.12"),
        "{out}"
    );
    Ok(())
}

fn web() -> anyhow::Result<()> {
    let ran = shared::daemon()?.run(&manifest("web.yaml")?)?;
    let out = ran.ok()?;
    ensure!(
        out.contains("[client] <h1>A page written by an init container of web</h1>"),
        "{out}"
    );
    ensure!(out.contains("[server] the client has its page"), "{out}");
    Ok(())
}

fn exit_code() -> anyhow::Result<()> {
    let script = "echo last words; echo to stderr >&2; exit 7";
    let ran = shared::daemon()?.run(&one("exit-code", script, json!({})))?;
    ensure!(ran.stderr.contains("[c] to stderr"), "{ran}");
    ensure!(ran.code(7)?.contains("[c] last words"), "no output");
    Ok(())
}

fn exits_at_once() -> anyhow::Result<()> {
    let ran = shared::daemon()?.run(&one("at-once", "seq 1 20000; exit 3", json!({})))?;
    let out = ran.code(3)?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(lines.len() == 20_000, "{} lines of 20000", lines.len());
    ensure!(
        lines[19_999] == "[c] 20000",
        "the last line is {:?}",
        lines[19_999]
    );
    Ok(())
}

fn init_in_order() -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let init = |name: &str| container(name, &format!("echo {name} >> /v/order"), mount.clone());
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [init("first"), init("second"), init("third")],
    });
    let main = container("main", "cat /v/order", mount.clone());
    let out = shared::daemon()?
        .run(&pod("in-order", &[main], spec))?
        .ok()?;
    ensure!(
        out == "[main] first\n[main] second\n[main] third\n",
        "{out}"
    );
    Ok(())
}

fn init_fails() -> anyhow::Result<()> {
    let spec = json!({"initContainers": [container("init", "echo no; exit 9", json!({}))]});
    let main = container("main", "echo must not run", json!({}));
    let ran = shared::daemon()?.run(&pod("init-fails", &[main], spec))?;
    ensure!(!ran.stdout.contains("must not run"), "{ran}");
    ran.code(9)?;
    Ok(())
}

fn shared_namespaces() -> anyhow::Result<()> {
    let a = container("a", "hostname; echo from a | nc -l -p 7000", json!({}));
    let b = container(
        "b",
        "hostname; until nc 127.0.0.1 7000; do sleep 0.1; done",
        json!({}),
    );
    let spec = json!({"hostname": "shared-host"});
    let out = shared::daemon()?
        .run(&pod("shared-namespaces", &[a, b], spec))?
        .ok()?;
    for line in ["[a] shared-host", "[b] shared-host", "[b] from a"] {
        ensure!(out.contains(line), "no {line:?} in {out}");
    }
    Ok(())
}

fn pid_namespaces() -> anyhow::Result<()> {
    let script = "echo I am $$$$; exec sleep 0.2";
    let out = shared::daemon()?
        .run(&one("own-pids", script, json!({})))?
        .ok()?;
    ensure!(out.contains("[c] I am 1\n"), "{out}");
    let wait = "until ps | grep -q '[s]leep 33'; do sleep 0.1; done; echo seen; kill $(ps | awk '/[s]leep 33/ {print $1}')";
    let containers = [
        container("a", "exec sleep 33", json!({})),
        container("b", wait, json!({})),
    ];
    let spec = json!({"shareProcessNamespace": true});
    let ran = shared::daemon()?.run(&pod("shared-pids", &containers, spec))?;
    ensure!(ran.stdout.contains("[b] seen"), "{ran}");
    Ok(())
}

fn json_manifest() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    daemon.run(&one("json", "true", json!({})))?.ok()?;
    let pod = daemon.inspect("json")?;
    ensure!(pod["phase"] == "PHASE_SUCCEEDED", "{pod:#}");
    ensure!(pod["manifest"]["metadata"]["name"] == "json", "{pod:#}");
    ensure!(pod["containers"][0]["reason"] == "Completed", "{pod:#}");
    Ok(())
}

fn sizing() -> anyhow::Result<()> {
    let limits = json!({"resources": {"limits": {"cpu": "2", "memory": "200Mi"}}});
    let script = "nproc; cat /sys/fs/cgroup/memory.max";
    let daemon = shared::daemon()?;
    let out = daemon.run(&one("sized", script, limits))?.ok()?;
    ensure!(out == "[c] 2\n[c] 209715200\n", "{out}");
    let memory = daemon.inspect("sized")?["vm"]["memoryMib"].as_u64();
    ensure!(
        memory.is_some_and(|m| (200..1024).contains(&m)),
        "{memory:?}"
    );
    Ok(())
}
