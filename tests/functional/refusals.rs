//! Bad input and faults: what is said, and that nothing stays behind.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::manifest::{container, one, pod};
use spherule_tests::{Daemon, DaemonOptions, guest_dir, program};
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    ("unsupported_fields_are_all_named", unsupported),
    ("manifest_that_is_no_pod_is_refused", no_pod),
    ("second_pod_of_one_name_is_refused", same_name),
    ("limits_no_vm_can_have_are_refused", limits),
    ("missing_image_is_named", missing_image),
    ("command_without_a_daemon_says_how_to_start_one", no_daemon),
    ("second_daemon_on_one_root_is_refused", second_daemon),
    (
        "corrupt_kernel_fails_the_pod_with_the_cause",
        corrupt_kernel,
    ),
    ("missing_kernel_is_named", missing_kernel),
    ("guest_that_never_answers_fails_the_pod", silent_guest),
    ("guest_panic_fails_the_pod_with_the_panic", guest_panic),
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
        json!({"hostNetwork": true, "dnsConfig": {"nameservers": ["10.0.0.1"]}}),
    );
    let ran = shared::daemon()?.run(&manifest)?;
    ran.refused(&[
        "spec.containers[0].lifecycle",
        "not supported",
        "spec.dnsConfig",
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

/// A daemon whose guest directory was tampered with.
fn with_guest(
    kernel: Option<&[u8]>,
    initramfs: Option<&[u8]>,
) -> anyhow::Result<(tempfile::TempDir, Daemon)> {
    let dir = tempfile::tempdir()?;
    for (name, content) in [("vmlinux", kernel), ("initramfs.cpio", initramfs)] {
        match content {
            Some(content) => std::fs::write(dir.path().join(name), content)?,
            None => std::os::unix::fs::symlink(guest_dir().join(name), dir.path().join(name))?,
        }
    }
    let args = vec!["--agent-timeout".into(), "15s".into()];
    let guest = dir.path().into();
    let daemon = Daemon::with(DaemonOptions {
        guest,
        args,
        ..DaemonOptions::default()
    })?;
    Ok((dir, daemon))
}

/// The pod fails, and one of its messages has all of these words.
fn fails_with(daemon: &Daemon, words: &[&str]) -> anyhow::Result<()> {
    daemon.run_detached(&one("fails", "true", json!({})))?;
    let pod = daemon.wait_for("fails", "failed", |p| p["phase"] == "PHASE_FAILED")?;
    let text = pod["message"].as_str().context("message")?;
    for word in words {
        ensure!(
            text.to_lowercase().contains(&word.to_lowercase()),
            "no {word:?} in {text:?}"
        );
    }
    let left = crate::lifecycle::processes_naming(daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn corrupt_kernel() -> anyhow::Result<()> {
    let (_dir, daemon) = with_guest(Some(b"this is no kernel"), None)?;
    fails_with(&daemon, &["kernel"])
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

fn silent_guest() -> anyhow::Result<()> {
    // /init that sleeps for ever instead of the agent.
    let busybox = std::fs::read(test_images::BUSYBOX)?;
    let script = b"#!/busybox sh\nexec /busybox sleep 100000\n";
    let archive = cpio(&[("busybox", &busybox), ("init", script)]);
    let (_dir, daemon) = with_guest(None, Some(&archive))?;
    fails_with(&daemon, &["agent", "15 s"])
}

fn guest_panic() -> anyhow::Result<()> {
    // No /init at all: the kernel panics for want of one.
    let (_dir, daemon) = with_guest(None, Some(&cpio(&[])))?;
    fails_with(&daemon, &["panic"])
}

/// A newc archive of executable files.
fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end: (&str, &[u8]) = ("TRAILER!!!", b"");
    for (number, (name, content)) in files.iter().chain([&end]).enumerate() {
        let mode = if *name == end.0 { 0 } else { 0o100_755 };
        let fields = [
            number + 1,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
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
