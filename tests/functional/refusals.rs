//! Bad input and faults: what is said, and that nothing stays behind.

use crate::{Test, shared};
use anyhow::ensure;
use serde_json::json;
use spherule_tests::manifest::{container, one, pod};
use spherule_tests::{guest_dir, program};
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    ("unsupported_fields_are_all_named", unsupported),
    ("manifest_that_is_no_pod_is_refused", no_pod),
    ("second_pod_of_one_name_is_refused", same_name),
    ("limits_no_vm_can_have_are_refused", limits),
    ("missing_image_is_named", missing_image),
    ("command_without_a_daemon_says_how_to_start_one", no_daemon),
    ("second_daemon_on_one_root_is_refused", second_daemon),
    ("missing_kernel_is_named", missing_kernel),
    ("container_that_floods_its_output_loses_nothing", flood),
];

fn unsupported() -> anyhow::Result<()> {
    let c = container(
        "c",
        "true",
        json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}),
    );
    let manifest = pod(
        "unsupported",
        &[c],
        json!({"hostNetwork": true, "readinessGates": [{"conditionType": "x"}]}),
    );
    let ran = shared::daemon()?.run(&manifest)?;
    ran.refused(&[
        "spec.containers[0].lifecycle",
        "not supported",
        "spec.readinessGates",
        "spec.hostNetwork",
    ])?;
    shared::daemon()?
        .cli(["inspect", "unsupported"])?
        .refused(&["unsupported"])
}

fn no_pod() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    daemon.run("kind: [")?.refused(&["manifest", "line 2"])?;
    daemon
        .run("{apiVersion: v1, kind: Service, metadata: {name: x}}")?
        .refused(&["Service"])?;
    daemon.run("")?.refused(&["manifest"])?;
    daemon
        .run(&one("Bad_Name", "true", json!({})))?
        .refused(&["metadata.name"])?;
    daemon
        .cli(["run", "-f", "/no/such/file"])?
        .refused(&["/no/such/file"])
}

fn same_name() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    daemon.run(&one("twice", "true", json!({})))?.ok()?;
    daemon
        .run(&one("twice", "true", json!({})))?
        .refused(&["twice", "exists"])
}

fn limits() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    for (resource, value) in [
        ("cpu", "1000"),
        ("memory", "64Ti"),
        ("memory", "-1"),
        ("cpu", "1x"),
    ] {
        let extra = json!({"resources": {"limits": {resource: value}}});
        let field = "spec.containers[0].resources.limits";
        daemon
            .run(&one("limits", "true", extra))?
            .refused(&[field])?;
    }
    daemon.cli(["inspect", "limits"])?.refused(&["limits"])
}

fn missing_image() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let extra = json!({"image": "localhost/nowhere:1"});
    daemon.run_detached(&one("missing-image", "true", extra))?;
    let pod = daemon.wait_for("missing-image", "told", |p| {
        p["containers"][0]["reason"] == "ErrImageNeverPull"
    })?;
    ensure!(pod.to_string().contains("localhost/nowhere:1"), "{pod:#}");
    daemon.cli(["rm", "--force", "missing-image"])?.ok()?;
    Ok(())
}

fn no_daemon() -> anyhow::Result<()> {
    let out = Command::new(program("spherule"))
        .args(["--run", "/nowhere", "ps"])
        .output()?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(
        !out.status.success() && stderr.contains("spherule serve"),
        "{stderr}"
    );
    Ok(())
}

fn second_daemon() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let out = Command::new(program("spherule"))
        .arg("serve")
        .arg("--root")
        .arg(daemon.root())
        .arg("--run")
        .arg(daemon.dir().join("second"))
        .arg("--guest")
        .arg(guest_dir())
        .output()?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(
        !out.status.success() && stderr.contains("another daemon"),
        "{stderr}"
    );
    Ok(())
}

fn missing_kernel() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let out = Command::new(program("spherule"))
        .args(["serve", "--root"])
        .arg(dir.path().join("root"))
        .arg("--run")
        .arg(dir.path().join("run"))
        .arg("--guest")
        .arg(dir.path())
        .output()?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(
        !out.status.success() && stderr.contains("vmlinux") && stderr.contains("--guest"),
        "{stderr}"
    );
    Ok(())
}

fn flood() -> anyhow::Result<()> {
    let script = "dd if=/dev/zero bs=64k count=256 2>/dev/null | tr '\\0' x; echo; echo done";
    let out = shared::daemon()?
        .run(&one("flood", script, json!({})))?
        .ok()?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(
        lines.len() == 2 && lines[1] == "[c] done",
        "{} lines",
        lines.len()
    );
    ensure!(
        lines[0].len() == "[c] ".len() + 16 * 1024 * 1024,
        "{} bytes",
        lines[0].len()
    );
    Ok(())
}
